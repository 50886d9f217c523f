"""What a large transformer would take, on one machine such as this and on many: one weight of each shape, timed.

Every shape of a model of 1, 7 and 70 billion numbers (the shapes of Llama 3.2 1B, Llama 2 7B and 70B; weights drawn at
random, bfloat16) is fitted once by `fit_model`, in a process of its own, reading, hashing and the SVD that the report
compares with included. The whole model is that, times how often the shape occurs; on several machines the weights go,
the longest first, to whoever is idle, as `fit --executor ray` hands them out. Embeddings stay as they are.

usage: scale.py [1B] [7B] [70B] [--effort fast] [--machines 1 64]
"""

from __future__ import annotations

import argparse
import heapq
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from spm_compress import CompressSettings, FitSettings, fit_model, open_source
from spm_compress.forms import EFFORTS

Shape = tuple[int, int]


def transformer(width: int, hidden: int, shared: int, layers: int) -> dict[Shape, int]:
    """Return how often each shape of weight occurs; shared: features of the keys and values."""
    counts: dict[Shape, int] = {}
    shapes = [(width, width)] * 2 + [(shared, width)] * 2 + [(hidden, width)] * 2 + [(width, hidden)]
    for shape in shapes:
        counts[shape] = counts.get(shape, 0) + layers
    return counts


MODELS = {
    "1B": transformer(2048, 8192, 512, 16),
    "7B": transformer(4096, 11008, 4096, 32),
    "70B": transformer(8192, 28672, 1024, 80),
}


def measure(shape: Shape, effort: str) -> tuple[float, float]:
    """Fit one weight of that shape in a process of its own; return seconds and the peak of its memory in GB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--shape", *map(str, shape), "--effort", effort, "--folder", folder]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds, peak = json.loads(run.stdout)
    return seconds, peak


def fit_one(shape: Shape, effort: str, folder: Path) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    save_file({"w": weight}, folder / "w.safetensors")
    del weight
    settings = CompressSettings(FitSettings(**EFFORTS[effort]))
    began = time.perf_counter()
    fit_model(open_source(folder / "w.safetensors"), settings, beside=folder)
    seconds = time.perf_counter() - began
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9]))


def makespan(seconds: list[float], machines: int) -> float:
    """Return when the last of the fits is done, if the longest are handed out first."""
    busy = [0.0] * machines
    for each in sorted(seconds, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + each)
    return max(busy)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL", help=", ".join(MODELS))
    parser.add_argument("--effort", choices=EFFORTS, default="fast")
    parser.add_argument("--machines", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--shape", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.shape:
        fit_one((options.shape[0], options.shape[1]), options.effort, options.folder)
        return
    chosen = options.models or list(MODELS)
    found: dict[Shape, tuple[float, float]] = {}
    for shape in sorted({shape for model in chosen for shape in MODELS[model]}):
        found[shape] = measure(shape, options.effort)
        seconds, peak = found[shape]
        numbers = shape[0] * shape[1] / 1e6
        print(f"{shape[0]}x{shape[1]}: {seconds:.1f} s, {numbers / seconds:.2f} million a second, {peak:.2f} GB")
    for model in chosen:
        counts = MODELS[model]
        every = [found[shape][0] for shape, count in counts.items() for _ in range(count)]
        hours = ", ".join(f"{n} machines: {makespan(every, n) / 3600:.2f} h" for n in options.machines)
        numbers = sum(out * into * count for (out, into), count in counts.items()) / 1e9
        peak = max(found[shape][1] for shape in counts)
        print(f"{model}: {numbers:.2f} billion numbers in {len(every)} weights; {hours}; {peak:.1f} GB a process")


if __name__ == "__main__":
    main()
