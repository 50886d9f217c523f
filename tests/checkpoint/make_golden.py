"""Makes the golden artifact of the manifest version of the day. Run once a version, when it is made; never again.

    python tests/checkpoint/make_golden.py

It holds canonical, rotation and random-schedule layers, a wide and a tall one, low-rank terms with and without a
chain, shifts, tied names and kept tensors.
`v<N>.expected.safetensors` has the dense matrices that those layers were on the day.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from spm_compress.checkpoint import Artifact, FittedLayer, KeptTensor, write_artifact
from spm_compress.checkpoint.artifact import MANIFEST_VERSION
from spm_compress.operator import SPM, Mixer, Schedule, Structure, build_structure

FOLDER = Path(__file__).parent / "golden"
KINDS = {
    "canonical.weight": (24, 24, Mixer.CANONICAL, Schedule.GROUPED, 9),
    "wide.weight": (40, 24, Mixer.CANONICAL, Schedule.GROUPED, 22),
    "tall.weight": (24, 40, Mixer.CANONICAL, Schedule.GROUPED, 7),
    "rotation.weight": (24, 24, Mixer.ROTATION, Schedule.BUTTERFLY, 6),
    "general.weight": (15, 15, Mixer.GENERAL, Schedule.GROUPED, 5),
    "random.weight": (18, 18, Mixer.CANONICAL, Schedule.RANDOM, 3),
}


def random_numbers(structure: Structure, generator: torch.Generator) -> list[dict[str, torch.Tensor]]:
    return [
        {key: torch.randn(shape, generator=generator) for key, shape in named.items()} for named in structure.shapes()
    ]


def fitted(name: str, spm: SPM) -> FittedLayer:
    names = (name, "tied.weight") if name == "canonical.weight" else (name,)
    return FittedLayer(names, spm.shape, "F32", "0" * 64, 0.5, 0.6, 400, 0, "random", spm)


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    layers, expected = [], {}
    for name, (out, into, mixer, schedule, stages) in KINDS.items():
        structure = build_structure(into, out, stages=stages, mixer=mixer, schedule=schedule, block=8)
        spm = SPM(structure, random_numbers(structure, generator))
        layers.append(fitted(name, spm))
        expected[name] = spm.to_dense()
    for name, rank, stages in (("companion.weight", 3, 5), ("svd.weight", 2, 0)):
        structure = build_structure(24, 40, stages=stages or 1, mixer=Mixer.CANONICAL, block=8)
        structure = replace(structure, rank=rank, chains=structure.chains if stages else ())
        spm = SPM(structure, random_numbers(structure, generator))
        layers.append(replace(fitted(name, spm), output_error=0.4, svd_output_error=0.5, shift=torch.arange(40.0)))
        expected[name] = spm.to_dense()
    kept = torch.arange(6, dtype=torch.float16).reshape(2, 3)
    artifact = Artifact(
        source={"path": "model.safetensors", "files": {"model.safetensors": "1" * 64}},
        settings={"stages": 9},
        versions={"spm_compress": "0.1.0", "torch": "2.13.0"},
        layers=tuple(layers),
        kept=(KeptTensor("kept", (2, 3), "F16", 12, "excluded"),),
        tensors={"kept": kept},
        recovery={
            "steps": 3,
            "loss": "features",
            "agreement_before": 0.1,
            "agreement_after": 0.9,
            "data": {"file": "texts.txt", "sha256": "2" * 64},
            "settings": {},
            "retrained": ["kept"],
        },
        curves={"canonical.weight": [{"stages": 9, "bytes": 900, "error": 0.5}]},
    )
    FOLDER.mkdir(exist_ok=True)
    write_artifact(artifact, FOLDER / f"v{MANIFEST_VERSION}.spm.safetensors")
    save_file(expected, FOLDER / f"v{MANIFEST_VERSION}.expected.safetensors")


if __name__ == "__main__":
    main()
