"""What a GPU gives: a layer's training step beside a dense one, fits, and recovery steps, each beside another way.

    python benchmarks/gpu.py [layer] [fit] [recovery]

layer: forward and backward of an SPM layer with log2(n) stages, by its kernels, by blocks multiplied out
    (`torch.compile` takes those too), and by the dense layer of that width; tf32 and autocast to bfloat16; medians of
    rounds in which they take turns.
fit: MiniLM's 36 encoder matrices on the GPU, twice, and on this machine's CPU: seconds, errors, whether the two are the
    same bytes; and one 4096x11008 matrix.
recovery: steps of MiniLM's recovery (bfloat16, as `distill --device cuda` takes them), with the kernels and without.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from itertools import pairwise
from unittest import mock

import torch
from real_models import ROOT, fetched
from recovery_data import write_texts
from torch import Tensor, nn

from spm_compress import CompressSettings, FitSettings, SPMLinear, fit_matrices, fit_model, open_source
from spm_compress.checkpoint.artifact import Artifact
from spm_compress.checkpoint.huggingface import load_huggingface
from spm_compress.compress import load_model
from spm_compress.distill import DistillSettings, Rates, Trained, TrainingReport, distill
from spm_compress.distill.samples import samples
from spm_compress.layers import linear

WIDTHS = (384, 1024, 2048, 4096, 8192)
ROWS = (512, 8192)
NO_KERNELS = {"_kernels": lambda plan, like: None}


def main(wanted: list[str]) -> None:
    torch.backends.cuda.matmul.allow_tf32 = True  # the dense layer's best
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    for name in wanted or ["layer", "fit", "recovery"]:
        {"layer": layer, "fit": fit, "recovery": recovery}[name]()


def layer() -> None:
    print("| n | rows | dtype | dense, ms | kernels | blocks | kernels against dense | peak, dense and kernels, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for n in WIDTHS:
        for rows in ROWS:
            x = torch.randn(rows, n, device="cuda", requires_grad=True)
            dense, spm = nn.Linear(n, n, device="cuda"), SPMLinear(n, n, stages=round(math.log2(n)), device="cuda")
            for dtype, half in (("tf32", False), ("bfloat16", True)):
                ways = {
                    "dense": lambda dense=dense, x=x, half=half: _both_ways(dense, x, half),
                    "kernels": lambda spm=spm, x=x, half=half: _both_ways(spm, x, half),
                    "blocks": lambda spm=spm, x=x, half=half: _without_kernels(spm, x, half),
                }
                times = in_turns(ways)
                peaks = [_peak(ways[name]) / 2**20 for name in ("dense", "kernels")]
                ms = " | ".join(f"{times[name]:.2f}" for name in ways)
                speed = times["dense"] / times["kernels"]
                print(f"| {n} | {rows} | {dtype} | {ms} | {speed:.2f}x | {peaks[0]:.0f}, {peaks[1]:.0f} |", flush=True)


def _both_ways(module: nn.Module, x: Tensor, half: bool) -> None:
    with torch.autocast("cuda", torch.bfloat16, enabled=half):
        y = module(x)
    torch.autograd.grad(y, [x, *module.parameters()], torch.ones_like(y))


def _without_kernels(module: nn.Module, x: Tensor, half: bool) -> None:
    with mock.patch.multiple(linear, **NO_KERNELS):
        _both_ways(module, x, half)


def in_turns(ways: Mapping[str, Callable[[], object]], rounds: int = 20) -> dict[str, float]:
    """Return the median milliseconds of each way, the host's part included."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 5):
        for name, way in ways.items():
            torch.cuda.synchronize()
            began = time.perf_counter()
            way()
            torch.cuda.synchronize()
            if turn >= 5:
                times[name].append(1000 * (time.perf_counter() - began))
    return {name: statistics.median(each) for name, each in times.items()}


def _peak(way: Callable[[], object]) -> int:
    """Return the bytes that are taken on the way, besides what was there."""
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way()
    return torch.cuda.max_memory_allocated() - before


def fit() -> None:
    print("\n| where | 36 matrices, s | mean error | largest |\n|---|---|---|---|")
    found = {}
    for where in ("cuda", "cuda, again", "cpu"):
        began = time.perf_counter()
        found[where] = encoder(FitSettings(stages=10), where.partition(",")[0])
        seconds, errors = time.perf_counter() - began, [each.error for each in found[where].layers]
        print(f"| {where} | {seconds:.1f} | {statistics.mean(errors):.4f} | {max(errors):.4f} |", flush=True)
    pairs = zip(found["cuda"].layers, found["cpu"].layers, strict=True)
    print(f"\nthe same bytes twice: {_numbers(found['cuda']) == _numbers(found['cuda, again'])}; ", end="")
    print(f"largest difference of an error to the CPU's: {max(abs(a.error - b.error) for a, b in pairs):.1e}")
    weight = torch.randn(4096, 11008, generator=torch.Generator().manual_seed(0)).cuda()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    (result,) = fit_matrices(weight[None], FitSettings(stages=10))
    peak = (torch.cuda.max_memory_allocated() - before) / weight.nbytes
    print(f"4096x11008: {time.perf_counter() - began:.1f} s to {result.error:.4f}, {peak:.1f} sizes of the matrix\n")


def encoder(settings: FitSettings, device: str) -> Artifact:
    chosen = CompressSettings(fit=settings, include=("encoder.*",))
    return fit_model(open_source(fetched("minilm")), chosen, beside=ROOT, device=device)


def _numbers(artifact: Artifact) -> list[bytes]:
    arrays = [x for each in artifact.layers for x in each.operator.arrays.values()]
    return [x.contiguous().view(torch.uint8).numpy().tobytes() for x in arrays]


def recovery(steps: int = 100) -> None:
    source = open_source(fetched("minilm"))
    (ROOT / "build" / "recovery").mkdir(parents=True, exist_ok=True)
    texts, _ = write_texts(ROOT / "build" / "recovery" / "texts.txt")
    artifact = encoder(FitSettings(stages=20, steps=200), "cuda")
    teacher = load_huggingface(source).eval()
    settings = DistillSettings(
        steps=steps, rates=Rates.parse("2e-3"), block_share=0.0, trained=Trained.ALL, check_every=steps, longest=64
    )
    loader, held = samples(teacher, source, texts, settings)
    teacher.cuda()
    print("| kernels | a step, ms | agreement before | after |\n|---|---|---|---|")
    for has in ("yes", "no"):
        student = load_model(artifact, source).cuda()
        moments: list[float] = []

        def watch(report: TrainingReport, moments: list[float] = moments) -> None:
            del report
            torch.cuda.synchronize()
            moments.append(time.perf_counter())

        with nullcontext() if has == "yes" else mock.patch.multiple(linear, **NO_KERNELS):
            reached = distill(teacher, student, loader, held, settings, watch=watch)
        step = 1000 * statistics.median(b - a for a, b in pairwise(moments))
        print(f"| {has} | {step:.0f} | {reached.before:.3f} | {reached.after:.3f} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
