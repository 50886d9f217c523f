"""How long fits take, beside the plain way: every stage by itself through autograd (naive_fit.py).

    python benchmarks/fit_speed.py [square] [wide] [long] [big] [model] [large]
                                   [--stages 10] [--steps 600] [--repeats 3] [--index-select]

square, wide, long: a 384x384, a 1536x384 and a 384x1536 weight of MiniLM. big: 2048x2048, drawn with singular values
1/sqrt(k); its naive way is timed for a few steps only, and taken to need as many as the library to the same error. For
each, both have the same stages, step size and planned steps, run interleaved, and every run has a process of its own:

    ms a step       without what comes before the first and after the last
    error           that the naive way ends at (big: the library)
    naive s, ours s until an error within 0.1 % of it
    --index-select  gathers of the naive way are index_select instead of x[partner]
    peak            memory that the fit takes beyond its weight and the libraries, in sizes of the dense weight

model: MiniLM's 36 encoder matrices by `fit_model`, beside the naive way on one matrix of each shape, its time
multiplied out. large: 4096x11008, normal, the default number of steps.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import ParamSpec, TypeVar

import torch
from naive_fit import Progress, naive_fit
from real_models import ROOT, fetched
from torch import Tensor

from spm_compress import CompressSettings, FitSettings, fit_matrices, fit_model, open_source
from spm_compress.fitting import StepReport

P = ParamSpec("P")
T = TypeVar("T")
# A step is timed over so many where a whole descent would take too long.
FEW = 20
# Two descents that end this near to each other have reached the same error.
SAME = 1.001
MOMENTS = (1, 2, 5, 10, 20, 50)  # seconds
SQUARE, WIDE, LONG = (
    f"encoder.layer.0.{name}.weight" for name in ("attention.self.query", "intermediate.dense", "output.dense")
)


@dataclass(frozen=True)
class Case:
    """A weight to fit: a tensor of MiniLM, or drawn by a seeded generator. few: naive steps that are run."""

    title: str
    load: Callable[[], Tensor]
    few: int | None = None


@dataclass(frozen=True)
class Run:
    """One fit in a process of its own; seconds: all of it; peak: bytes beyond what was there before."""

    progress: tuple[Progress, ...]
    seconds: float
    peak: int
    values: int

    @property
    def step_seconds(self) -> float:
        """Seconds a step."""
        first, last = self.progress[0], self.progress[-1]
        return (last.seconds - first.seconds) / (last.step - first.step)

    def error_at(self, seconds: float) -> float:
        """Return the error after so many seconds, 1 before the first."""
        return min((each.error for each in self.progress if each.seconds <= seconds), default=1.0)

    def seconds_to(self, error: float) -> float:
        """Return when the error was first no larger than this, infinity if never."""
        return next((each.seconds for each in self.progress if each.error <= error), math.inf)

    def steps_to(self, error: float) -> float:
        """Return after how many steps the error was first no larger than this, infinity if never."""
        return next((each.step for each in self.progress if each.error <= error), math.inf)


def of_minilm(name: str) -> Tensor:
    return open_source(fetched("minilm")).read(name)


def power_law() -> Tensor:
    """Return U diag(1/sqrt(k)) V^T, 2048x2048, U and V orthogonal and drawn from the seed 0."""
    n, generator = 2048, torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, n, generator=generator)).Q for _ in range(2))
    weight: Tensor = (u * torch.arange(1, n + 1).rsqrt()) @ v
    return weight


def normal() -> Tensor:
    return torch.randn(4096, 11008, generator=torch.Generator().manual_seed(0))


CASES = {
    "square": Case("384x384", partial(of_minilm, SQUARE)),
    "wide": Case("1536x384", partial(of_minilm, WIDE)),
    "long": Case("384x1536", partial(of_minilm, LONG)),
    "big": Case("2048x2048", power_law, few=FEW),
}
LARGE = Case("4096x11008", normal)
# How many of MiniLM's 36 matrices have the shape of each.
ALIKE = {SQUARE: 24, WIDE: 6, LONG: 6}


def naive(case: Case, settings: FitSettings, selects: bool) -> Run:
    weight = case.load()
    tiny = torch.ones(64, 64)
    list(naive_fit(tiny, settings.spm(64, 64), 2, 2, selects=selects))  # the library's own memory is not the fit's
    before = peak_memory()
    began = time.perf_counter()
    form = settings.spm(*weight.shape)
    progress = naive_fit(weight, form, settings.steps, case.few or settings.steps, seed=settings.seed, selects=selects)
    return Run(tuple(progress), time.perf_counter() - began, peak_memory() - before, weight.numel())


def ours(case: Case, settings: FitSettings) -> Run:
    weight = case.load()
    fit_matrices(torch.ones(1, 64, 64), replace(settings, steps=2))  # as in `naive`
    before = peak_memory()
    began = time.perf_counter()
    progress: list[Progress] = []

    def watch(report: StepReport) -> None:
        progress.append(Progress(report.step, time.perf_counter() - began, report.error))

    fit_matrices(weight[None], settings, watch)
    seconds = time.perf_counter() - began
    return Run(tuple(progress), seconds, peak_memory() - before, weight.numel())


def whole_minilm(settings: FitSettings) -> tuple[float, dict[str, float]]:
    """Fit the 36 matrices; return the seconds, and the error of each by its name."""
    source = open_source(fetched("minilm"))
    began = time.perf_counter()
    artifact = fit_model(source, CompressSettings(settings, include=("encoder.*",)), beside=ROOT)
    return time.perf_counter() - began, {layer.names[0]: layer.error for layer in artifact.layers}


def peak_memory() -> int:
    """Return the most bytes that this process has held so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def alone(task: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call in a fresh process: its peak memory is that of nothing else."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        return process.submit(task, *args, **kwargs).result()


@dataclass(frozen=True)
class Duel:
    """The same case fitted both ways, interleaved."""

    case: Case
    plain: tuple[Run, ...]
    fused: tuple[Run, ...]

    @property
    def error(self) -> float:
        """What the naive way reaches in all its steps; where it ran only a few, what the library reaches."""
        return median(self.fused if self.case.few else self.plain, lambda run: run.progress[-1].error)

    @property
    def naive_seconds(self) -> float:
        """How long the naive way takes to `error`."""
        if self.case.few:
            steps = median(self.fused, lambda run: run.steps_to(SAME * self.error))
            return median(self.plain, lambda run: run.step_seconds) * steps
        return median(self.plain, lambda run: run.seconds_to(SAME * self.error))

    @property
    def our_seconds(self) -> float:
        """How long the library takes to `error`."""
        return median(self.fused, lambda run: run.seconds_to(SAME * self.error))


def median(runs: Sequence[Run], of: Callable[[Run], float]) -> float:
    return statistics.median(of(run) for run in runs)


def duel(case: Case, settings: FitSettings, repeats: int, selects: bool) -> Duel:
    pairs = [(alone(naive, case, settings, selects), alone(ours, case, settings)) for _ in range(repeats)]
    plain, fused = zip(*pairs, strict=True)
    return Duel(case, plain, fused)


def show(fought: Duel) -> None:
    both = fought.plain, fought.fused
    naive_seconds, our_seconds = fought.naive_seconds, fought.our_seconds
    cells = [
        fought.case.title,
        *(f"{median(runs, lambda run: run.step_seconds) * 1e3:.1f}" for runs in both),
        f"{fought.error:.4f}",
        f"{naive_seconds:.1f}" + (" (scaled)" if fought.case.few else ""),
        f"{our_seconds:.1f}",
        f"{naive_seconds / our_seconds:.1f}",
        *(f"{median(runs, lambda run: run.peak / (4 * run.values)):.1f}" for runs in both),
    ]
    print(f"| {' | '.join(cells)} |", flush=True)


def show_curves(duels: Sequence[Duel]) -> None:
    print(f"\n| error after | | {' | '.join(f'{moment} s' for moment in MOMENTS)} |")
    print("|---" * (2 + len(MOMENTS)) + "|")
    for fought in duels:
        for way, runs in (("ours", fought.fused), ("naive", () if fought.case.few else fought.plain)):
            if not runs:
                continue
            errors = [f"{statistics.median(run.error_at(moment) for run in runs):.3f}" for moment in MOMENTS]
            print(f"| {fought.case.title} | {way} | {' | '.join(errors)} |")


def matrices(cases: Sequence[Case], settings: FitSettings, repeats: int, selects: bool) -> None:
    print(
        f"\n{settings.stages} stages, {settings.steps} steps, median of {repeats}, {torch.get_num_threads()} threads\n"
    )
    print("| matrix | ms a step: naive | ours | error | naive s | ours s | times as fast | peak: naive | ours |")
    print("|---|---|---|---|---|---|---|---|---|")
    duels = []
    for case in cases:
        duels.append(duel(case, settings, repeats, selects))
        show(duels[-1])
    show_curves(duels)


def model(settings: FitSettings, repeats: int, selects: bool) -> None:
    """Print the time of the whole model with the library's own number of steps."""
    fits = [alone(whole_minilm, FitSettings(stages=settings.stages)) for _ in range(repeats)]
    seconds, errors = statistics.median(fit[0] for fit in fits), fits[0][1]
    mean = statistics.mean(errors.values())
    print(f"\nMiniLM, {len(errors)} matrices in {settings.stages} stages: {seconds:.0f} s, mean error {mean:.4f}")
    plain = {name: alone(naive, Case(name, partial(of_minilm, name)), settings, selects) for name in ALIKE}
    naive_seconds = sum(ALIKE[name] * run.seconds for name, run in plain.items())
    print(f"naive way, {settings.steps} steps: {naive_seconds:.0f} s, {naive_seconds / seconds:.0f} times as long")
    for name, run in plain.items():
        print(f"    {name}: naive {run.progress[-1].error:.4f}, ours {errors[name]:.4f}")


def large(settings: FitSettings) -> None:
    run = alone(ours, LARGE, FitSettings(stages=settings.stages))
    print(f"\n{LARGE.title}, {settings.stages} stages, {run.progress[-1].step} steps: {run.seconds:.0f} s, ", end="")
    print(f"{run.step_seconds:.3f} s a step; peak {run.peak / (4 * run.values):.1f} times the weight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", choices=[*CASES, "model", "large"], default=[*CASES, "model", "large"])
    parser.add_argument("--stages", type=int, default=10)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--index-select", action="store_true", help="the naive way gathers with index_select")
    given = parser.parse_args()
    settings = FitSettings(stages=given.stages, steps=given.steps)
    if cases := [case for name, case in CASES.items() if name in given.what]:
        matrices(cases, settings, given.repeats, given.index_select)
    if "model" in given.what:
        model(settings, given.repeats, given.index_select)
    if "large" in given.what:
        large(settings)


if __name__ == "__main__":
    main()
