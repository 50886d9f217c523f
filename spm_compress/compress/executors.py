"""Where batches of weights are fitted: in this process, or in several beside it."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.compress.job import Job
from spm_compress.compress.layers import fit_batch
from spm_compress.compress.progress import Progress
from spm_compress.compress.weights import Weights
from spm_compress.errors import FitError, UsageError
from spm_compress.fitting.settings import OnStep

__all__ = ["Done", "Executor", "Here", "Processes", "Task"]


@dataclass(frozen=True)
class Task:
    """Jobs of one shape and kind, and their weights, or the tensors themselves."""

    jobs: tuple[Job, ...]
    weights: Weights | tuple[Tensor, ...]
    device: str

    def shipped_along(self) -> Task:
        """Return the task with its weights in it, for a process that does not see the model's files."""
        return replace(self, weights=tuple(self._read()))

    def _read(self) -> Sequence[Tensor]:
        if isinstance(self.weights, tuple):
            return self.weights
        return [self.weights.read(job.names[0]) for job in self.jobs]

    def run(self, watch: OnStep | None = None) -> Done:
        """Fit. Raises FitError, and SourceError for a weight that is no longer what it was when it was selected."""
        began = time.perf_counter()
        layers = fit_batch(self.jobs, self._read(), self.device, watch)
        return Done(self.jobs, tuple(layers), time.perf_counter() - began)


@dataclass(frozen=True)
class Done:
    """Fitted layers, one a job, and the seconds that all of them took."""

    jobs: tuple[Job, ...]
    layers: tuple[FittedLayer, ...]
    seconds: float


class Executor(Protocol):
    """Runs tasks and yields each as it is done, in any order; the numbers are the same whoever runs them."""

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[Done]:
        """Raises what `Task.run` raises, and FitError for workers that are lost."""


class Here:
    """One task after the other, in this process."""

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[Done]:
        """As `Executor.run`."""
        for task in tasks:
            progress.batch([job.names[0] for job in task.jobs], task.jobs[0].shape)
            yield task.run(progress.step)


class Processes:
    """Several processes on this machine, which share its cores. Raises UsageError for fewer than one."""

    def __init__(self, count: int) -> None:
        if count < 1:
            raise UsageError(f"`jobs` {count}: must be 1 or more")
        self.count = count

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[Done]:
        """As `Executor.run`; weights are read by the workers."""
        if not tasks:
            return
        threads = max(1, torch.get_num_threads() // self.count)
        context = multiprocessing.get_context("spawn")  # a fork would share torch's threads
        workers = min(self.count, len(tasks))
        pool = ProcessPoolExecutor(workers, context, initializer=torch.set_num_threads, initargs=(threads,))
        waiting = list(tasks)
        running: set[Future[Done]] = set()
        try:
            while waiting or running:
                while waiting and len(running) < workers:
                    progress.batch([job.names[0] for job in waiting[0].jobs], waiting[0].jobs[0].shape)
                    running.add(pool.submit(waiting.pop(0).run))
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        except BrokenProcessPool as error:
            raise FitError(
                "a worker process died (out of memory?); use fewer `jobs`; the same command goes on"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
