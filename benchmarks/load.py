"""How long ONNX Runtime takes to load MiniLM, and the memory at its peak: stages beside the dense file.

    python benchmarks/load.py [--repeats N]

Stages are multiplied out to blocks when a file is loaded, few bits are unpacked. Each load is a process of its own, all
files in turns, one thread; medians. No fit is needed: neither depends on the numbers (0 steps). Results are kept in
benchmarks/results/load.json, which docs/measurements.md has its table from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime
from onnxruntime.quantization import quantize_dynamic
from origin import origin
from real_models import ROOT, fetched

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.codecs import parse_bits
from spm_compress.export.measuring.footprint import in_fresh_process

RESULTS = ROOT / "benchmarks" / "results" / "load.json"
HOME = ROOT / "build" / "load"
STAGES = 20
# Name -> bits of the stages, and the lowering.
ROWS: Mapping[str, tuple[str, str]] = {
    "blocks, float32": ("32", "blocks"),
    "blocks, 8 bits": ("8", "blocks"),
    "blocks, 5 bits": ("5", "blocks"),
    "stages, 8 bits": ("8", "stages"),
    "multiplied out, 8 bits": ("8", "dense"),
}


def write(name: str, dense: Path) -> Path:
    """Write the file of a row; dense: where the float32 graph goes."""
    bits, lowering = ROWS[name]
    path = HOME / f"{name.replace(', ', '_').replace(' ', '_')}.onnx"
    source = open_source(fetched("minilm"))
    settings = CompressSettings(FitSettings(stages=STAGES, steps=0, store=parse_bits(bits)))
    artifact = fit_model(source, settings, beside=HOME)
    chosen = ExportSettings(lowering=ExportSettings.named(lowering))
    export_onnx(artifact, path, source=source, settings=chosen, dense_path=dense)
    return path


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    asked = parser.parse_args(arguments)
    HOME.mkdir(parents=True, exist_ok=True)
    dense, int8 = HOME / "dense.onnx", HOME / "quantize_dynamic.onnx"
    paths = {name: write(name, dense) for name in ROWS}
    quantize_dynamic(dense, int8)
    paths = {"float32": dense, "quantize_dynamic": int8, **paths}
    times: dict[str, list[float]] = {name: [] for name in paths}
    peaks: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(asked.repeats):
        for name, path in paths.items():
            found = in_fresh_process([str(path), "CPUExecutionProvider", "1"])
            times[name].append(found["load"])
            peaks[name].append(found["peak_memory"])
    rows: list[dict[str, Any]] = []
    first = statistics.median(times["float32"])
    for name, path in paths.items():
        median = statistics.median(times[name])
        row = {
            "name": name,
            "megabytes": round(path.stat().st_size / 1e6, 2),
            "seconds": round(median, 3),
            "ratio": round(median / first, 2),
            "peak_megabytes": round(statistics.median(peaks[name]) / 1e6),
        }
        rows.append(row)
        print(json.dumps(row), flush=True)
    result = {
        **origin(__file__, arguments),
        "onnxruntime": onnxruntime.__version__,
        "stages": STAGES,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
