"""Layer after layer: each fitted to the inputs that the layers before it, already replaced, give it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from spm_compress.calibration.collect import paired_moments
from spm_compress.calibration.runner import open_runner
from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.compress.fitter import Fitter
from spm_compress.compress.job import Job
from spm_compress.errors import UsageError

__all__ = ["fit_sequential"]


def fit_sequential(fitter: Fitter, jobs: Sequence[Job], data: Path) -> Iterator[FittedLayer]:
    """Fit the jobs in the order in which the model uses them and yield each.

    Inputs come from a model in which the layers before are replaced, targets from the original one. Layers of one
    input are fitted together. Raises UsageError for a weight whose inputs cannot be watched, and what
    `open_runner` and `Fitter.fit` raise.
    """
    source = fitter.weights.source
    original, now = open_runner(source, data), open_runner(source, data)
    by_name = {name: job for job in jobs for name in job.names}
    order = original.order(list(by_name))
    unseen = set(by_name) - {name for group in order for name in group}
    hidden = [job.names[0] for job in jobs if set(job.names) <= unseen]
    if hidden:
        raise UsageError(
            f"{source.path}: the input of {hidden[0]} cannot be watched; leave it out with `exclude`, or leave "
            "`is_sequential` out"
        )
    done: set[str] = set()
    for group in order:
        # A weight that the model uses again, or under another name, is fitted at its first use.
        first = [by_name[name].names[0] for name in group]
        names = [name for name in dict.fromkeys(first) if name not in done]
        seen = {by_name[name].names[0]: name for name in group}
        paired = paired_moments(original, now, [seen[name] for name in names])
        ready = [by_name[name].watched(paired[seen[name]].now, paired[seen[name]]) for name in names]
        for layer in fitter.fit(ready):
            done.add(layer.name)
            bias_correction = torch.zeros(layer.shape[0]) if layer.bias_correction is None else layer.bias_correction
            for name in layer.names:
                now.replace(name, layer.operator.to(torch.float64).to_dense(), bias_correction)
            yield layer
