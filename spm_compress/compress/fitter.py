"""Fits jobs: batch by batch, wherever there is room, and never twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.compress.cache import FitCache
from spm_compress.compress.executors import Executor, Here, Task
from spm_compress.compress.job import Job
from spm_compress.compress.layers import batches
from spm_compress.compress.progress import Progress, Silent
from spm_compress.compress.weights import Weights

__all__ = ["Fitter"]


@dataclass(frozen=True)
class Fitter:
    """What every way to fit a model shares.

    fits: those made before and where new ones go; executor: who does the work.
    """

    weights: Weights
    device: str = "cpu"
    progress: Progress = field(default_factory=Silent)
    fits: FitCache = field(default_factory=lambda: FitCache(None))
    executor: Executor = field(default_factory=Here)

    def fit(self, jobs: Sequence[Job]) -> Iterator[FittedLayer]:
        """Yield every job's layer as it is stored: first those that are known, then the others as they are done.

        Raises FitError naming the weights that cannot be fitted, SourceError for one that has changed.
        """
        missing: dict[str, Job] = {}
        for job in jobs:
            known = self.known(job)
            if known is None:
                missing[job.names[0]] = job
            else:
                self.progress.layer(known[0])
                yield known[0]
        shapes = {name: job.shape for name, job in missing.items()}
        kinds = {name: (job.fit, job.moments is None) for name, job in missing.items()}
        tasks = [
            Task(tuple(missing[name] for name in batch), self.weights, self.device) for batch in batches(shapes, kinds)
        ]
        for done in self.executor.run(tasks, self.progress):
            for job, layer in zip(done.jobs, done.layers, strict=True):
                self.fits.put(job, layer, self.device, done.seconds / len(done.jobs))
                self.progress.layer(layer)
                yield layer

    def known(self, job: Job) -> tuple[FittedLayer, float] | None:
        """Return the layer of a job that was fitted before, as it is fitted here, and the seconds that it took."""
        return self.fits.get(job, self.device)

    def seconds(self, job: Job) -> float:
        """Return what fitting a job took, whenever that was; 0 for one that was not fitted."""
        known = self.known(job)
        return 0.0 if known is None else known[1]
