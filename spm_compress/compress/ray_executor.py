"""Batches of weights fitted by the workers of a Ray cluster."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spm_compress.compress.executors import Done, Task
from spm_compress.compress.progress import Progress
from spm_compress.errors import FitError, SpmError, UsageError, first_line

__all__ = ["OnRay"]

# Times that a task is given to another worker when its own is lost.
_RETRIES = 3


@dataclass(frozen=True)
class OnRay:
    """An Executor: one Ray task a batch, on the cluster of RAY_ADDRESS or else a local one.

    at_once: tasks that wait or run, None for two a processor of the cluster; gpus: share of a GPU a task takes; ship:
    send weights through the object store, for workers that do not see the model's files. Raises UsageError without Ray.
    """

    at_once: int | None = None
    gpus: float = 0.0
    ship: bool = False

    def run(self, tasks: Sequence[Task], progress: Progress) -> Iterator[Done]:
        """As `Executor.run`. A worker that is lost is replaced; what it had in hand is done again."""
        if not tasks:
            return
        try:
            import ray
        except ImportError as error:
            raise UsageError("`executor` ray needs Ray; install it with: pip install 'spm-compress[ray]'") from error
        if not ray.is_initialized():
            try:
                # Without an address this starts a cluster here, with a processor for each task.
                processors = None if "RAY_ADDRESS" in os.environ else self.at_once
                ray.init(num_cpus=processors, log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
            except (ConnectionError, ValueError, RuntimeError) as error:
                raise FitError(f"no Ray cluster can be reached ({first_line(error)}); check RAY_ADDRESS") from error
        fit = ray.remote(num_cpus=1, num_gpus=self.gpus, max_retries=_RETRIES)(_run)
        most = self.at_once or max(1, 2 * int(ray.cluster_resources().get("CPU", 1)))  # type: ignore[no-untyped-call]
        waiting = list(tasks)
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < most:
                task = waiting.pop(0)
                progress.batch([job.names[0] for job in task.jobs], task.jobs[0].shape)
                running.append(fit.remote(task.shipped_along() if self.ship else task, str(Path.cwd())))
            ready, running = ray.wait(running)
            yield from map(_result, ready)


def _result(ready: Any) -> Done:
    import ray

    try:
        found: Done = ray.get(ready)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, SpmError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        raise FitError(
            f"workers were lost {_RETRIES + 1} times over one task (out of memory?); the same command goes on"
        ) from error
    return found


def _run(task: Task, folder: str) -> Done:
    if os.path.isdir(folder):  # noqa: PTH112 (runs on a worker)
        os.chdir(folder)
    return task.run()
