"""Files that are either whole or not there."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from spm_compress.checkpoint.keys import is_storable
from spm_compress.checkpoint.outputs import temporary_beside
from spm_compress.errors import SpmError

__all__ = [
    "beside",
    "make_folder",
    "own_name",
    "save_tensors",
    "sha256_of",
    "sweep",
    "write_tensors",
    "write_whole",
    "write_whole_set",
]


@contextmanager
def write_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block ends well, else remove it.

    What stood at `path` stays until the new file is complete. Raises SpmError where the folder
    cannot be written or the disk is full.
    """
    temporary = temporary_beside(path)
    try:
        temporary.touch()  # fails at once where the folder is missing or may not be written
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise SpmError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder's permissions and free space"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


@contextmanager
def write_whole_set(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; if the block ends well, its files get their names, `path`'s own last.

    For a file that names others beside it: until the others are there it does not exist. Folders in it
    are scratch space. Raises SpmError as `write_whole`.
    """
    temporary = temporary_beside(path)
    try:
        temporary.mkdir()
        yield temporary
        files = [file for file in sorted(temporary.iterdir()) if file.is_file() and file.name != path.name]
        for file in (*files, temporary / path.name):
            with file.open("rb+") as opened:
                os.fsync(opened.fileno())
            file.replace(path.with_name(file.name))
    except OSError as error:
        raise SpmError(
            f"{path}: cannot be written ({error.strerror or error}); check the folder's permissions and free space"
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, whole or not at all; metadata: one entry at most, several have no fixed order.

    Raises SpmError as `write_whole`.
    """
    with write_whole(path) as temporary:
        save_tensors(tensors, temporary, metadata)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file within `write_whole` or `write_whole_set`.

    Raises OSError if it cannot be written, SpmError for a name that safetensors cannot have.
    """
    for name in tensors:
        if not is_storable(name):
            raise SpmError(f"tensor {name!r}: safetensors cannot have a tensor of this name; rename it in the model")
    path.touch()
    mode = path.stat().st_mode
    try:
        save_file(dict(_apart(tensors)), path, metadata=dict(metadata or {"format": "pt"}))
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(mode)  # safetensors puts a file in its place that nobody else may read


def _apart(tensors: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors, each in memory of its own: safetensors writes none that share it, as tied ones of torch do."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        place = tensor.untyped_storage().data_ptr()
        yield name, tensor.clone() if place in seen else tensor
        seen.add(place)


def sweep(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left in a folder of files that they had not finished, of any name or this one."""
    for path in folder.glob(f".{name if name == '*' else glob.escape(name)}.*.tmp"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def beside(path: Path, name: str) -> Path | None:
    """Return the file of that name in the folder of `path`; None if it lies elsewhere: absolute, `..` or a link.

    In the cache of Hugging Face every file is a link into one folder; so a link beside a link is followed where both
    point into the same one.
    """
    place = path.parent / name
    folders = {path.parent.resolve(), path.resolve().parent}
    return place if place.parent == path.parent and place.resolve().parent in folders else None


def make_folder(folder: Path) -> Path:
    """Return the folder, made if it was not there. Raises SpmError where it cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SpmError(f"{folder}: cannot be made ({error.strerror}); check the folder's permissions") from error
    return folder


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def own_name(path: Path) -> str:
    """Return the name of a file or folder, of ".", too; a link's own, as in caches its target is named by a digest."""
    return (path if path.name not in ("", "..") else path.resolve()).name
