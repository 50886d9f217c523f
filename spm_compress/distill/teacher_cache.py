"""The teacher's answers, computed once for each batch that comes again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

__all__ = ["TeacherCache"]

_Answer = Mapping[str, Tensor]


class TeacherCache:
    """Answers by the content of the batch that they are to, as many as fit in `room` bytes; those that came first stay.

    By content, because a loader makes new objects in each round. They are kept as they are, so that an answer found
    and one computed anew are the same bits.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._known: dict[bytes, _Answer] = {}

    def to(self, batch: Any, compute: Callable[[], _Answer]) -> _Answer:
        """Return the answer to a batch."""
        if self._room <= 0 and not self._known:
            return compute()
        key = _digest(batch)
        if key not in self._known:
            answer = compute()
            size = sum(x.nbytes for x in answer.values())
            if size > self._room:
                return answer
            self._room -= size
            self._known[key] = answer
        return self._known[key]


def _digest(batch: Any) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    named = batch if isinstance(batch, Mapping) else {"": batch}
    for name, x in named.items():
        digest.update(f"{name}/{x.dtype}/{tuple(x.shape)}/".encode())
        digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()
