"""The teacher's answers, computed once for each batch that comes again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from spm_compress.distill.answers_on_disk import AnswersOnDisk
from spm_compress.distill.tensor_digest import add_tensors

__all__ = ["TeacherCache"]

_Answer = Mapping[str, Tensor]


class TeacherCache:
    """Answers by the content of the batch that they are to, as many as fit in `room` bytes; those that came first stay.

    disk: where they are looked for then, and kept as well. kind: what of its answers; no other kind is found. By
    content, because a loader makes new objects in each round. They are kept as they are, so that an answer found and
    one computed anew are the same bits.
    """

    def __init__(self, room: int, disk: AnswersOnDisk | None = None, kind: str = "") -> None:
        self._room, self._disk, self._kind = room, disk, kind
        self._known: dict[str, _Answer] = {}

    def to(self, batch: Any, compute: Callable[[], _Answer]) -> _Answer:
        """Return the answer to a batch."""
        if self._room <= 0 and not self._known and self._disk is None:
            return compute()
        key = self._key(batch)
        if key in self._known:
            return self._known[key]
        answer = self._found_or_made(key, compute)
        size = sum(x.nbytes for x in answer.values())
        if size <= self._room:
            self._room -= size
            self._known[key] = answer
        return answer

    def _found_or_made(self, key: str, compute: Callable[[], _Answer]) -> _Answer:
        found = self._disk.get(key) if self._disk is not None else None
        if found is not None:
            return found
        made = compute()
        if self._disk is not None:
            self._disk.put(key, made)
        return made

    def _key(self, batch: Any) -> str:
        digest = hashlib.blake2b(self._kind.encode(), digest_size=16)
        add_tensors(digest, batch if isinstance(batch, Mapping) else {"": batch})
        return digest.hexdigest()
