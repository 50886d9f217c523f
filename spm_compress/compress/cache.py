"""Fits that were made before: one small artifact each, found by everything that its numbers depend on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from spm_compress.cache_key import cache_key
from spm_compress.checkpoint.artifact import SUFFIX, Artifact, FittedLayer, read_artifact, write_artifact
from spm_compress.checkpoint.files import make_folder
from spm_compress.compress.job import Job
from spm_compress.errors import SpmError

__all__ = ["FitCache", "fit_key"]


class FitCache:
    """Fitted layers by `fit_key`; kept in a folder, or only in memory without one."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._known: dict[str, tuple[FittedLayer, Mapping[str, Any]]] = {}

    def get(self, job: Job, device: str) -> tuple[FittedLayer, float] | None:
        """Return a layer that was fitted for such a job and the seconds that it took, None if there is none."""
        key = fit_key(job, device)
        if key not in self._known and self.folder is not None:
            try:
                artifact = read_artifact(self._path(key))
            except SpmError:  # missing or damaged: fitted again
                return None
            self._known[key] = artifact.layers[0], artifact.settings
        if key not in self._known:
            return None
        layer, settings = self._known[key]
        return replace(layer, names=job.names, dtype=job.dtype, is_table=job.is_table), float(settings["seconds"])

    def __len__(self) -> int:
        """Return how many fits are known: those in the folder, without opening them."""
        return len(self._known) if self.folder is None else len(list(self.folder.glob(f"*{SUFFIX}")))

    def put(self, job: Job, layer: FittedLayer, device: str, seconds: float) -> None:
        """Keep a fitted layer. Raises SpmError if the folder cannot be written."""
        key = fit_key(job, device)
        settings = {"seconds": seconds}
        self._known[key] = layer, settings
        if self.folder is not None:
            make_folder(self.folder)
            write_artifact(Artifact({}, settings, {}, (layer,), (), {}), self._path(key))

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"{key}{SUFFIX}"


def fit_key(job: Job, device: str) -> str:
    """Return the key of all that the numbers of a fit depend on; devices round in their own ways."""
    return cache_key(
        weight=job.sha256,
        fit=job.fit,
        moments=job.moments,
        paired=job.paired,
        has_bias=job.has_bias,
        stays=job.stays,
        device=device,
    )[:32]
