"""Our files beside the original and strong rivals, all measured in one run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxruntime

from spm_compress.distill.settings import Loss
from spm_compress.errors import SpmError, UsageError
from spm_compress.export.measuring.footprint import Footprint, footprint
from spm_compress.export.measuring.timing import interleaved
from spm_compress.export.same_inputs import open_alike, open_file, run_file, sizes, trial_of
from spm_compress.export.verification import check_provider
from spm_compress.pipeline.answers import Answers, Batches, answers_of
from spm_compress.pipeline.standing import Contender, Frontier, LeftOut, Shape, Standing

__all__ = ["SCHEMA", "FrontierSettings", "frontier_json", "measure_frontier"]

SCHEMA = "spm-compress/frontier/1"
Score = Callable[[Path], float]


@dataclass(frozen=True)
class FrontierSettings:
    """At what all files are timed: every combination of batches and sequences that the model can be run at.

    threads: 0 for all cores; repeats: timed runs of each file; seconds: a combination stops repeating after so long a
    time for each file; seed: of the random inputs that are timed; loss: what agreement is of, None to choose by what
    the original answers.
    """

    provider: str = "CPUExecutionProvider"
    threads: int = 1
    batches: tuple[int, ...] = (1, 8)
    sequences: tuple[int, ...] = (16, 128)
    repeats: int = 30
    seconds: float = 5.0
    seed: int = 0
    loss: Loss | None = None


def measure_frontier(
    contenders: Sequence[Contender],
    batches: Batches,
    settings: FrontierSettings | None = None,
    progress: Callable[[str], None] = lambda line: None,
    *,
    left_out: Sequence[LeftOut] = (),
    score: Score | None = None,
) -> Frontier:
    """Measure bytes, load, memory, latencies, agreement and score of ONNX files of one model.

    contenders: the original first; batches: held-out inputs, name -> array whose first axis is the samples; progress:
    is told a line a step; left_out: baselines that could not be made; score: the user's own measure of a file, higher
    is better. A baseline that cannot be measured is left out too, and told.

    Raises UsageError for contenders or data that make no comparison, or a provider that is not there, SourceError for a
    file that cannot be read, VerificationError for an original or a file of ours that cannot be run or compared.
    """
    settings = settings or FrontierSettings()
    _check(contenders)
    check_provider(settings.provider)
    original = contenders[0].path
    graph = open_alike([original])
    shapes = _shapes(graph, settings)
    runtime = open_file(original, settings.threads, settings.provider)
    trial = trial_of(original, runtime, graph, *_counts(shapes[-1]))
    inputs = [replace(trial, size=size or 1).inputs(graph, batch, settings.seed) for batch, size in shapes]
    progress(f"{contenders[0].name}: answers to held-out data")
    known = answers_of(original, runtime, batches, settings.loss)
    del runtime  # its memory is not that of what is measured

    kept: list[tuple[Contender, float, Footprint, float | None]] = []
    gone = list(left_out)
    for contender in contenders:
        progress(f"{contender.name}: agreement, load time and memory")
        try:
            open_alike([original, contender.path])
            agreement = _agreement(contender, known, inputs, settings)
            taken = footprint(contender.path, inputs[-1], settings.provider, settings.threads)
        except SpmError as error:
            if contender.kind != "baseline":
                raise
            gone.append(LeftOut(contender.name, str(error)))
            progress(f"{contender.name}: left out ({error})")
            continue
        kept.append((contender, agreement, taken, None if score is None else score(contender.path)))

    timed = _timed([contender for contender, *_ in kept], shapes, inputs, settings, progress)
    standings = tuple(
        Standing(each.name, each.kind, taken.bytes, taken.load, taken.peak_memory, timed[each.name], agreement, scored)
        for each, agreement, taken, scored in kept
    )
    said = {**asdict(settings), "loss": settings.loss and settings.loss.value}
    return Frontier(shapes, standings, tuple(gone), known.measure, known.samples, said)


def _check(contenders: Sequence[Contender]) -> None:
    if not contenders or [each.kind for each in contenders].count("original") != 1 or contenders[0].kind != "original":
        raise UsageError("the contenders must begin with the one original; the others are compared with it")
    names = [each.name for each in contenders]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"the contenders have two files called {twice}; give each a name of its own")


def _shapes(graph: ir.Model, settings: FrontierSettings) -> tuple[Shape, ...]:
    """Return what is timed, the largest last: there memory is taken."""
    batches, sequences = sizes(graph, settings.batches, settings.sequences)
    return tuple(itertools.product(sorted(set(batches)), sorted(set(sequences), key=lambda size: size or 0)))


def _counts(shape: Shape) -> tuple[int, int]:
    return shape[0], shape[1] or 1


def _agreement(
    contender: Contender,
    known: Answers,
    inputs: Sequence[Mapping[str, Any]],
    settings: FrontierSettings,
) -> float:
    runtime = open_file(contender.path, settings.threads, settings.provider)
    for each in inputs:  # what cannot be timed is known before anything is
        run_file(contender.path, runtime, each)
    return known.agreement(contender.path, runtime)


def _timed(
    contenders: Sequence[Contender],
    shapes: Sequence[Shape],
    inputs: Sequence[Mapping[str, Any]],
    settings: FrontierSettings,
    progress: Callable[[str], None],
) -> dict[str, tuple[float, ...]]:
    """Return name -> median seconds at each shape, all files interleaved."""
    sessions = {each.name: open_file(each.path, settings.threads, settings.provider) for each in contenders}
    found: dict[str, tuple[float, ...]] = dict.fromkeys(sessions, ())
    for i, ((batch, size), fed) in enumerate(zip(shapes, inputs, strict=True)):
        progress(f"[{i + 1}/{len(shapes)}] latency at batch {batch}" + ("" if size is None else f", sequence {size}"))
        calls = {name: functools.partial(runtime.run, None, dict(fed)) for name, runtime in sessions.items()}
        timings = interleaved(calls, repeats=settings.repeats, seconds=settings.seconds * len(calls))
        found = {name: (*seconds, timings[name].median) for name, seconds in found.items()}
    return found


def frontier_json(frontier: Frontier) -> dict[str, Any]:
    """Return the results as JSON values, with `schema` as their version; seconds and bytes."""
    return {
        "schema": SCHEMA,
        "onnxruntime": onnxruntime.__version__,
        "settings": {key: list(x) if isinstance(x, tuple) else x for key, x in frontier.settings.items()},
        "agreement": {"measure": frontier.measure, "samples": frontier.samples},
        "shapes": [{"batch": batch, "sequence": sequence} for batch, sequence in frontier.shapes],
        "standings": [
            {**asdict(each), "seconds": list(each.seconds), "dominated_by": list(frontier.dominated_by(each.name))}
            for each in frontier.standings
        ],
        "left_out": [asdict(each) for each in frontier.left_out],
    }
