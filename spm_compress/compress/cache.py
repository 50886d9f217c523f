"""Fits that were made before: one small artifact each, found by everything that its numbers depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spm_compress.checkpoint.artifact import SUFFIX, Artifact, FittedLayer, read_artifact, write_artifact
from spm_compress.checkpoint.files import make_folder
from spm_compress.compress.job import Job
from spm_compress.errors import SpmError
from spm_compress.version import __version__

__all__ = ["FitCache"]


class FitCache:
    """Fitted layers by weight, settings and calibration; kept in a folder, or only in memory without one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[str, tuple[FittedLayer, Mapping[str, Any]]] = {}

    def get(self, job: Job, store: torch.dtype) -> tuple[FittedLayer, float] | None:
        """Return a layer that was fitted for such a job and the seconds that it took, None if there is none."""
        key = _key(job, store)
        if key not in self._known and self.folder is not None:
            try:
                artifact = read_artifact(self._path(key))
            except SpmError:  # missing or damaged: fitted again
                return None
            self._known[key] = artifact.layers[0], artifact.settings
        if key not in self._known:
            return None
        layer, settings = self._known[key]
        return replace(layer, names=job.names, dtype=job.dtype), float(settings["seconds"])

    def __len__(self) -> int:
        """Return how many fits are known: those in the folder, without opening them."""
        return len(self._known) if self.folder is None else len(list(self.folder.glob(f"*{SUFFIX}")))

    def put(self, job: Job, layer: FittedLayer, store: torch.dtype, seconds: float) -> None:
        """Keep a fitted layer. Raises SpmError if the folder cannot be written."""
        key = _key(job, store)
        settings = {"seconds": seconds}
        self._known[key] = layer, settings
        if self.folder is not None:
            make_folder(self.folder)
            write_artifact(Artifact({}, settings, {}, (layer,), (), {}), self._path(key))

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}{SUFFIX}"


def _key(job: Job, store: torch.dtype) -> str:
    inputs: list[object] = []
    if job.moments is not None:
        inputs += [job.moments.rows, *map(_digest, (job.moments.covariance, job.moments.mean))]
    if job.paired is not None:
        inputs += map(_digest, (job.paired.cross, job.paired.mean))
    question = (job.sha256, job.fit, store, inputs, __version__, torch.__version__)
    return hashlib.sha256(repr(question).encode()).hexdigest()[:32]


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().tobytes()).hexdigest()
