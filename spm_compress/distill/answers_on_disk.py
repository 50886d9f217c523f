"""Answers of a teacher on disk: the next training on the same texts finds them, and runs no teacher.

1. A folder belongs to one teacher and one kind of answers (`teacher_digest`), a file in it to one batch.
2. An answer is written as it is used, in its dtype: found, it is the same bits. Its file says by a digest whose answer
   it is and what it holds; one that is damaged, or of another batch, is as if it were not there.
3. Folders of other teachers make room, those that were used longest ago first; then no more is written. A folder that
   cannot be written ends the keeping, not the training.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from spm_compress.checkpoint.files import make_folder, sweep, write_tensors
from spm_compress.distill.tensor_digest import add_tensors
from spm_compress.errors import SpmError

__all__ = ["AnswersOnDisk"]

_FOLDER = re.compile(r"[0-9a-f]{32}")
_SUFFIX = ".safetensors"
_DIGEST = "digest"
_ANSWER = "answer/"
# Bytes of a file besides its tensors: more than there are in any.
_MOST_OF_HEADER = 4096


class AnswersOnDisk:
    """Answers in the folder `root/teacher`, which all teachers together fill up to `room` bytes.

    root: parent of all; teacher: 32 hexadecimal digits; device: where answers are put.
    """

    def __init__(self, root: Path, teacher: str, room: int, device: torch.device) -> None:
        self._folder, self._device, self._room = root / teacher, device, room
        self._taken = _size(self._folder)
        self._others: list[tuple[Path, int]] = []
        with contextlib.suppress(OSError):
            sweep(self._folder)
            os.utime(self._folder)
        with contextlib.suppress(OSError):
            found = [each for each in root.iterdir() if _is_ours(each) and each != self._folder]
            self._others = [(each, _size(each)) for each in sorted(found, key=lambda each: each.stat().st_mtime)]
        self._leave_others(room - self._taken)

    def get(self, key: str) -> dict[str, Tensor] | None:
        """Return an answer, None if it is not there, whole."""
        try:
            found = load(self._path(key).read_bytes())
        except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
            return None
        told = found.pop(_DIGEST, None)
        answer = {name.removeprefix(_ANSWER): x for name, x in found.items()}
        if told is None or not torch.equal(told, self._digest(key, answer)):
            return None
        return {name: x.to(self._device) for name, x in answer.items()}

    def put(self, key: str, answer: Mapping[str, Tensor]) -> None:
        """Keep an answer, if there is room."""
        size = _MOST_OF_HEADER + sum(x.nbytes for x in answer.values())
        if not self._make_room(size):
            return
        tensors = {f"{_ANSWER}{name}": x.detach().cpu().contiguous() for name, x in sorted(answer.items())}
        try:
            make_folder(self._folder)
            write_tensors({**tensors, _DIGEST: self._digest(key, answer)}, self._path(key))
        except SpmError:  # no permission, a full disk
            self._room = 0
        else:
            self._taken += _size_of(self._path(key))

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}{_SUFFIX}"

    def _digest(self, key: str, answer: Mapping[str, Tensor]) -> Tensor:
        digest = hashlib.blake2b(f"{self._folder.name}/{key}".encode(), digest_size=16)
        add_tensors(digest, dict(sorted(answer.items())))
        return torch.tensor(list(digest.digest()), dtype=torch.uint8)

    def _make_room(self, size: int) -> bool:
        """Return whether there is room for an answer, once those of other teachers are gone as far as need be."""
        if self._taken + size > self._room:
            return False
        self._leave_others(self._room - self._taken - size)
        return True

    def _leave_others(self, size: int) -> None:
        while self._others and sum(taken for _, taken in self._others) > size:
            folder, _ = self._others.pop(0)
            shutil.rmtree(folder, ignore_errors=True)


def _is_ours(folder: Path) -> bool:
    return folder.is_dir() and not folder.is_symlink() and bool(_FOLDER.fullmatch(folder.name))


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # another process has made room
        return 0


def _size(folder: Path) -> int:
    """Return the bytes of the answers in a folder, 0 if it is not there."""
    try:
        with os.scandir(folder) as entries:
            return sum(each.stat().st_size for each in entries if each.name.endswith(_SUFFIX))
    except OSError:
        return 0
