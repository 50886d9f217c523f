"""Makes the golden artifact of the manifest version of the day. Run once a version, when it is made; never again.

    python tests/checkpoint/make_golden.py

It holds SPMs of general stages, in the canonical gauge and in the free one, of rotations and of a schedule by tables,
wide and tall; a sum with a low-rank term, a low-rank map, a dense one and a Monarch matrix; numbers in float32 and in
float16, angles and codes of a few bits; a lookup table; bias corrections, a codec that was refused, tied names and kept
tensors.
`v<N>.expected.safetensors` has the dense matrices that those layers were on the day.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from spm_compress.checkpoint import Artifact, FittedLayer, KeptTensor, write_artifact
from spm_compress.checkpoint.artifact import MANIFEST_VERSION
from spm_compress.codecs import FLOAT16, FLOAT32, Codec, StoredArray, integer, sign, ternary
from spm_compress.forms import Form, Operator, StoredOperator
from spm_compress.forms.dense import Dense
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.monarch import Monarch
from spm_compress.forms.spm import SPM, Mixer, Schedule, build_spm
from spm_compress.forms.sum import Sum

FOLDER = Path(__file__).parent / "golden"


def canonical(out: int, into: int, stages: int, schedule: Schedule = Schedule.GROUPED, codec: Codec = FLOAT32) -> SPM:
    return build_spm(into, out, stages=stages, schedule=schedule, block=8).stored(codec)


FORMS: dict[str, tuple[Form, Codec]] = {
    "canonical.weight": (canonical(24, 24, 9), FLOAT32),
    "wide.weight": (canonical(40, 24, 22), FLOAT32),
    "tall.weight": (canonical(24, 40, 7), FLOAT32),
    "rotation.weight": (
        build_spm(24, 24, stages=6, mixer=Mixer.ROTATION, schedule=Schedule.BUTTERFLY, block=8),
        FLOAT32,
    ),
    "general.weight": (build_spm(15, 15, stages=5, block=8), FLOAT32),  # as where the canonical gauge overflows
    "random.weight": (canonical(18, 18, 3, Schedule.RANDOM), FLOAT32),
    "half.weight": (canonical(24, 40, 7, codec=FLOAT16), FLOAT16),
    "half_rotation.weight": (build_spm(18, 24, stages=6, mixer=Mixer.ROTATION, block=8), FLOAT16),
    "dense.weight": (Dense(6, 5), FLOAT16),
    "sum.weight": (Sum((canonical(40, 24, 5), LowRank(24, 40, 3))), FLOAT32),
    "half_sum.weight": (Sum((canonical(18, 18, 3, Schedule.RANDOM, FLOAT16), LowRank(18, 18, 2))), FLOAT16),
    "low_rank.weight": (LowRank(24, 40, 2), FLOAT32),
    "monarch.weight": (Monarch(10, 7, 3, 2), FLOAT32),
    "angles.weight": (canonical(24, 24, 7, codec=integer(5)), integer(5)),
    "tall_angles.weight": (canonical(24, 40, 7, Schedule.RANDOM, integer(8)), integer(8)),
    "turns.weight": (build_spm(24, 18, stages=6, mixer=Mixer.ROTATION, block=8), integer(6)),
    "angles_sum.weight": (Sum((canonical(18, 18, 3, codec=integer(4)), LowRank(18, 18, 2))), integer(4)),
    "two_bits.weight": (LowRank(24, 40, 2), integer(2)),
    "blocks.weight": (Dense(64, 5), integer(4, 32)),
    "ternary.weight": (Dense(33, 5), ternary()),
    "signs.weight": (Monarch(10, 7, 3, 2), sign()),
    "table.weight": (Dense(17, 9), integer(3)),
}
# Those whose layers have a bias and were fitted with calibration data.
CALIBRATED = ("sum.weight", "low_rank.weight")


def fitted(name: str, form: Form, codec: Codec, generator: torch.Generator) -> FittedLayer:
    arrays = {key: torch.randn(shape, generator=generator) for key, shape in form.shapes.items()}
    codecs = form.codecs(codec)
    stored = StoredOperator(form, {key: StoredArray.of(codecs[key], array) for key, array in arrays.items()})
    names = (name, "tied.weight") if name == "canonical.weight" else (name,)
    layer = FittedLayer(names, Operator(form, arrays).shape, "F32", "0" * 64, 0.5, 0.6, 400, 0, "random", stored)
    if name == "general.weight":
        layer = replace(layer, reason="float16 cannot hold the numbers; stored in float32")
    if name == "table.weight":
        layer = replace(layer, is_table=True)
    if name in CALIBRATED:
        layer = replace(layer, output_error=0.4, svd_output_error=0.5, bias_correction=torch.arange(40.0))
    return layer


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    layers = [fitted(name, form, codec, generator) for name, (form, codec) in FORMS.items()]
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
    expected = {layer.name: layer.operator.to_dense() for layer in layers}
    save_file(expected, FOLDER / f"v{MANIFEST_VERSION}.expected.safetensors")


if __name__ == "__main__":
    main()
