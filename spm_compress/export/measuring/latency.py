"""How fast an ONNX model answers, alone or beside another one in the same run."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from spm_compress.export.measuring.footprint import Footprint, footprint
from spm_compress.export.measuring.timing import Timing, interleaved
from spm_compress.export.same_inputs import open_alike, open_file, run_file, sizes, trial_of
from spm_compress.export.verification import check_provider

__all__ = ["SCHEMA", "Bench", "BenchSettings", "Latency", "Load", "bench_json", "measure"]

SCHEMA = "spm-compress/bench/1"


@dataclass(frozen=True)
class BenchSettings:
    """At what a model is timed: every combination of the first four.

    threads: 0 for all cores; repeats: timed runs of each model; seconds: a combination stops repeating after this.
    """

    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    threads: tuple[int, ...] = (1,)
    batches: tuple[int, ...] = (1, 8, 64)
    sequences: tuple[int, ...] = (16, 128)
    repeats: int = 30
    seconds: float = 5.0
    seed: int = 0


@dataclass(frozen=True)
class Load:
    """What the models take before they answer; at the largest batch and sequence, the first number of threads."""

    provider: str
    model: Footprint
    against: Footprint | None

    def ratio(self, field: str) -> float | None:
        """Return against / model of a field of Footprint: above 1, the model takes less."""
        if self.against is None or not getattr(self.model, field):
            return None
        return float(getattr(self.against, field) / getattr(self.model, field))


@dataclass(frozen=True)
class Latency:
    """One combination. sequence: None for a model that has no dynamic axis but the batch."""

    provider: str
    threads: int
    batch: int
    sequence: int | None
    model: Timing
    against: Timing | None

    @property
    def ratio(self) -> float | None:
        """Median of against / median of the model: above 1, the model is faster."""
        return None if self.against is None else self.against.median / self.model.median


@dataclass(frozen=True)
class Bench:
    """All that was measured; loads: one a provider; latencies: in the order of the settings."""

    model: Path
    against: Path | None
    settings: BenchSettings
    loads: tuple[Load, ...]
    latencies: tuple[Latency, ...]


def measure(
    model: Path,
    against: Path | None = None,
    settings: BenchSettings | None = None,
    progress: Callable[[str], None] = lambda line: None,
) -> Bench:
    """Time an ONNX model with random inputs; with `against`, both interleaved. progress: is told a line a step.

    A model with fixed axes is timed at those; each combination is timed once.

    Raises UsageError for a provider that is not there, SourceError for a file that cannot be read, VerificationError
    for a model that ONNX Runtime cannot load or run, or for two models whose inputs differ.
    """
    settings = settings or BenchSettings()
    for provider in settings.providers:
        check_provider(provider)
    paths = [model] if against is None else [model, against]
    graph = open_alike(paths)
    batches, sequences = sizes(graph, settings.batches, settings.sequences)
    longest = max(size or 1 for size in sequences)
    plain = open_file(paths[-1], settings.threads[0], settings.providers[0])
    trial = trial_of(paths[-1], plain, graph, max(batches), longest)
    del plain  # its memory is not that of what is measured
    largest = trial.inputs(graph, max(batches), settings.seed)
    loads, latencies = [], []
    for provider in settings.providers:
        progress(f"{provider}: load time and memory")
        # Before they are measured by themselves: a mistake in sizes or models is then said in ONNX Runtime's words.
        for path in paths:
            run_file(path, open_file(path, settings.threads[0], provider), largest)
        found = [footprint(path, largest, provider, settings.threads[0]) for path in paths]
        loads.append(Load(provider, found[0], found[1] if against else None))
        for threads in settings.threads:
            sessions = [open_file(path, threads, provider) for path in paths]
            for batch, sequence in itertools.product(batches, sequences):
                inputs = replace(trial, size=sequence or 1).inputs(graph, batch, settings.seed)
                for path, runtime in zip(paths, sessions, strict=True):
                    run_file(path, runtime, inputs)
                timings = _in_turns(sessions, inputs, settings)
                latency = Latency(provider, threads, batch, sequence, timings[0], timings[1] if against else None)
                latencies.append(latency)
                progress(f"[{len(latencies)}/{_count(settings, batches, sequences)}] {_described(latency)}")
    return Bench(model, against, settings, tuple(loads), tuple(latencies))


def _in_turns(
    sessions: Sequence[onnxruntime.InferenceSession], inputs: Mapping[str, np.ndarray], settings: BenchSettings
) -> list[Timing]:
    calls = {str(i): functools.partial(runtime.run, None, dict(inputs)) for i, runtime in enumerate(sessions)}
    return list(interleaved(calls, repeats=settings.repeats, seconds=settings.seconds).values())


def _count(settings: BenchSettings, batches: Sequence[int], sequences: Sequence[int | None]) -> int:
    return len(settings.providers) * len(settings.threads) * len(batches) * len(sequences)


def _described(latency: Latency) -> str:
    sequence = "" if latency.sequence is None else f", sequence {latency.sequence}"
    ratio = "" if latency.ratio is None else f", ratio {latency.ratio:.2f}"
    where = f"{latency.provider}, threads {latency.threads}, batch {latency.batch}{sequence}"
    return f"{where}: {1000 * latency.model.median:.3f} ms{ratio}"


def bench_json(bench: Bench) -> dict[str, Any]:
    """Return the results as JSON values, with `schema` as their version; seconds and bytes."""

    def timing(each: Timing | None) -> dict[str, float] | None:
        return None if each is None else {"median_seconds": each.median, "p90_seconds": each.p90}

    def size(each: Footprint | None) -> dict[str, float] | None:
        if each is None:
            return None
        return {"bytes": each.bytes, "load_seconds": each.load, "peak_memory_bytes": each.peak_memory}

    return {
        "schema": SCHEMA,
        "model": str(bench.model),
        "against": None if bench.against is None else str(bench.against),
        "onnxruntime": onnxruntime.__version__,
        "settings": asdict(bench.settings),
        "loads": [
            {
                "provider": load.provider,
                "model": size(load.model),
                "against": size(load.against),
                "ratio": {
                    "bytes": load.ratio("bytes"),
                    "load": load.ratio("load"),
                    "peak_memory": load.ratio("peak_memory"),
                },
            }
            for load in bench.loads
        ],
        "latencies": [
            {
                "provider": latency.provider,
                "threads": latency.threads,
                "batch": latency.batch,
                "sequence": latency.sequence,
                "model": timing(latency.model),
                "against": timing(latency.against),
                "ratio": latency.ratio,
            }
            for latency in bench.latencies
        ],
    }
