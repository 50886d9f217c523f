"""MiniLM in few bits, untrained: the whole file, its agreement with the original, its speed beside int8.

    python benchmarks/bits.py [--calibration N] [--only NAME ...] [--repeats N]
    python benchmarks/bits.py --times

Every row is an ONNX file that ONNX Runtime runs: made by `fit` and `export` of this program, by `quantize_dynamic`
(int8, one line, no data), or the original in float32. Agreement as in recovery_data.py, on 400 sentences that were held
out; times of one run, one thread, all files interleaved, medians. --calibration: fit on so many other sentences, 0 for
none. --times: time the files that are there once more, on a machine that does nothing else, and keep the rest. What
was measured is kept in benchmarks/results/bits_minilm.json, which docs/few-bits.md has its tables from.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import platform
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import quantize_dynamic
from origin import origin
from real_models import ROOT, fetched
from recovery_data import Judge, write_texts
from torch import nn

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import load_module
from spm_compress.codecs import parse_bits
from spm_compress.export.measuring.timing import interleaved
from spm_compress.export.verification import session

RESULTS = ROOT / "benchmarks" / "results" / "bits_minilm.json"
HOME = ROOT / "build" / "bits"
# Name -> bits of the dense maps and of the tables.
ROWS: Mapping[str, tuple[str, str]] = {
    "int8, tables int4": ("8", "4"),
    "int4, tables int4": ("4", "4"),
    "int4 in blocks of 128, tables int4": ("4/128", "4"),
    "int4 in blocks of 32, tables int4": ("4/32", "4"),
    "3 bits, tables int4": ("3", "4"),
    "2 bits, tables int4": ("2", "4"),
    "ternary, tables int4": ("1.6", "4"),
    "1 bit, tables int4": ("1", "4"),
    "int8, tables int4 in blocks of 64": ("8", "4/64"),
    "int8, tables int4 in blocks of 32": ("8", "4/32"),
}
# After a name: activations stay in float32.
FLOAT = ", float32 activations"
SHAPES = ((1, 16), (1, 128), (16, 128))


class OnnxModel(nn.Module):
    """An ONNX file, called as the Hugging Face module that it was made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = session(path)
        self._names = [each.name for each in self._session.get_inputs()]

    def forward(self, **inputs: torch.Tensor) -> SimpleNamespace:
        """Return the first output as `last_hidden_state`."""
        fed = {name: inputs[name].numpy() for name in self._names}
        return SimpleNamespace(last_hidden_state=torch.from_numpy(self._session.run(None, fed)[0]))


def path_of(name: str) -> Path:
    """Return where the file of a row stands."""
    return HOME / f"{name.replace(', ', '_').replace(' ', '_')}.onnx"


def write(name: str, dense: Path, sentences: Path | None) -> Path:
    """Write the file of a row; dense: where the float32 graph goes."""
    path = path_of(name)
    bits, table_bits = ROWS[name.removesuffix(FLOAT)]
    source = open_source(fetched("minilm"))
    settings = CompressSettings(FitSettings(), include=("none",), dense=parse_bits(bits), table=parse_bits(table_bits))
    artifact = fit_model(source, settings, beside=HOME, data=sentences, cache=HOME / "fits")
    export_onnx(artifact, path, source=source, settings=_export_settings(name), dense_path=dense)
    return path


def _export_settings(name: str) -> ExportSettings:
    return ExportSettings(threads=1, rounds_activations=not name.endswith(FLOAT))


def latencies(paths: Mapping[str, Path], repeats: int) -> dict[str, list[float]]:
    """Return name -> milliseconds at each of SHAPES, one thread, all files interleaved."""
    sessions = {name: session(path, 1) for name, path in paths.items()}
    found: dict[str, list[float]] = {name: [] for name in paths}
    for shape in SHAPES:
        ids = np.random.default_rng(0).integers(1000, 20000, shape)
        calls = {}
        for name, runtime in sessions.items():
            fed = {
                each.name: np.zeros(shape, np.int64) if "type" in each.name else np.ones(shape, np.int64)
                for each in runtime.get_inputs()
            } | {"input_ids": ids}
            calls[name] = lambda runtime=runtime, fed=fed: runtime.run(None, fed)
        for name, timing in interleaved(calls, repeats=repeats, seconds=8.0).items():
            found[name].append(round(timing.median * 1e3, 3))
    return found


def load_seconds(path: Path) -> float:
    """Return the median of five loads."""
    found = []
    for _ in range(5):
        began = time.perf_counter()
        session(path, 1)
        found.append(time.perf_counter() - began)
    return round(statistics.median(found), 3)


def time_again(given: Mapping[str, Path], repeats: int) -> None:
    """Put new times and loads into the rows of all results; how long a file takes does not depend on its numbers."""
    known = json.loads(RESULTS.read_text(encoding="utf-8"))
    names = dict.fromkeys(row["name"] for each in known.values() for row in each["rows"])
    paths = {name: given.get(name) or path_of(name) for name in names}
    times, loads = latencies(paths, repeats), {name: load_seconds(path) for name, path in paths.items()}
    for each in known.values():
        for row in each["rows"]:
            row |= {"milliseconds": times[row["name"]], "load_seconds": loads[row["name"]]}
        each["timed"] = "python benchmarks/bits.py --times"
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calibration", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--times", action="store_true")
    asked = parser.parse_args(arguments)
    HOME.mkdir(parents=True, exist_ok=True)
    dense, int8, per_channel, reduced = (
        HOME / f"{name}.onnx" for name in ("dense", "quantize_dynamic", "per_channel", "reduce_range")
    )
    given = {
        "float32": dense,
        "quantize_dynamic": int8,
        "quantize_dynamic, per_channel": per_channel,
        "quantize_dynamic, per_channel, reduce_range": reduced,
    }
    if asked.times:
        time_again(given, asked.repeats)
        return
    texts, held = write_texts(HOME / "texts.txt")
    sentences = None
    if asked.calibration:
        sentences = HOME / f"calibration-{asked.calibration}.txt"
        lines = texts.read_text(encoding="utf-8").splitlines()[: asked.calibration]
        sentences.write_text("\n".join(lines) + "\n", encoding="utf-8")
    names = [name + end for name in asked.only for end in ("", FLOAT)]
    paths = {name: write(name, dense, sentences) for name in names}
    quantize_dynamic(dense, int8)
    quantize_dynamic(dense, per_channel, per_channel=True)
    quantize_dynamic(dense, reduced, per_channel=True, reduce_range=True)  # 7 bits: 8 saturate without VNNI
    paths = {**given, **paths}
    source = open_source(fetched("minilm"))
    judge = Judge(load_module(source).eval(), source.path, held)
    times = latencies(paths, asked.repeats)
    rows: list[dict[str, Any]] = []
    for name, path in paths.items():
        rows.append(
            {
                "name": name,
                "megabytes": round(path.stat().st_size / 1e6, 2),
                **{key: round(value, 4) for key, value in dataclasses.asdict(judge.scores(OnnxModel(path))).items()},
                "milliseconds": times[name],
                "load_seconds": load_seconds(path),
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    key = f"calibrated on {asked.calibration} sentences" if asked.calibration else "without data"
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    known[key] = {
        **origin(__file__, arguments),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "onnxruntime": onnxruntime.__version__,
        },
        "shapes": SHAPES,
        "rows": rows,
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
