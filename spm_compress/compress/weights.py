"""The weights of a model on their way to a fit: each is read once and digested once."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from spm_compress.checkpoint.source import Source, read_finite
from spm_compress.compress.job import digest
from spm_compress.errors import SourceError

__all__ = ["Weights"]

# Bytes that are held between selection and fit; of a larger model the rest is read, and digested, a second time.
_ROOM = 1 << 29


class Weights:
    """Weights of a source by their names.

    What has been digested is held until it is read, as much as there is room for. In another process nothing is held,
    and what is read there is compared with what was digested here. is_reused: weights are read more than once.
    """

    def __init__(self, source: Source, *, is_reused: bool = False, room: int = _ROOM) -> None:
        self.source = source
        self._is_reused = is_reused
        self._room = room
        self._digests: dict[str, str] = {}
        self._held: dict[str, Tensor] = {}

    def digest(self, name: str, *, is_chosen: bool = True) -> str:
        """Return the `digest` of a weight. is_chosen: hold it for its fit, as `read` is going to ask for it.

        Raises SourceError naming a chosen one that holds NaN or infinity.
        """
        if name not in self._digests:
            weight = _as_matrix(read_finite(self.source, name) if is_chosen else self.source.read(name))
            self._digests[name] = digest(weight)
            if is_chosen and weight.nbytes <= self._room:
                self._room -= weight.nbytes
                self._held[name] = weight
        return self._digests[name]

    def read(self, name: str) -> Tensor:
        """Return a weight (out, in) that was digested. Raises SourceError if it is another one by now."""
        if name in self._held:
            return self._held[name] if self._is_reused else self._given(name)
        weight = _as_matrix(self.source.read(name))
        if digest(weight) != self._digests[name]:
            raise SourceError(
                f"{self.source.path}: {name} changed while the model was being fitted; nothing was written"
            )
        return weight

    def _given(self, name: str) -> Tensor:
        weight = self._held.pop(name)
        self._room += weight.nbytes
        return weight

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_held": {}}


def _as_matrix(weight: Tensor) -> Tensor:
    return weight.flatten(1) if weight.dim() > 2 else weight  # of a 1x1 convolution
