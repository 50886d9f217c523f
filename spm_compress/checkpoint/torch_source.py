"""Files of torch.save: a state dict, or one nested as training programs do (nested.py); no code in them is run."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spm_compress.checkpoint.contents import Kind, kind_of
from spm_compress.checkpoint.files import sha256_of
from spm_compress.checkpoint.nested import choose, quantized_by_torch
from spm_compress.checkpoint.quantized import FROM
from spm_compress.checkpoint.tensor_info import TensorInfo, dtype_name, input_first
from spm_compress.errors import SourceError, first_line
from spm_compress.quiet import quiet

__all__ = ["SUFFIXES", "TorchSource", "open_torch", "require_honest"]

# Packages whose classes stand in the place of a weight -> what they are called.
_QUANTIZERS = {"torchao.": "torchao", "optimum.quanto.": "quanto", "quanto.": "quanto", "bitsandbytes.": "bitsandbytes"}
SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".tar")  # model.pth.tar


@dataclass(frozen=True)
class TorchSource:
    """A Source of one or more files of torch.save.

    path: what the user named; checkpoints: the files; config: the Hugging Face config.json; wanted: the way to the
    model in them that the user chose, None where there is one.
    """

    path: Path
    checkpoints: tuple[Path, ...]
    config: Mapping[str, Any] | None
    wanted: str | None = None
    graph: Path | None = None

    @cached_property
    def _chosen(self) -> tuple[str | None, dict[str, tuple[Path, Tensor]]]:
        found: dict[str, tuple[Path, Tensor]] = {}
        keys = set()
        for path in self.checkpoints:
            key, values = choose(path, _loaded(path), self.wanted)
            for name, x in values.items():
                require_honest(path, name, x)
            keys.add(key)
            found |= {name: (path, x) for name, x in values.items()}
        if len(keys) > 1:
            ways = ", ".join(sorted(str(key) for key in keys))
            raise SourceError(
                f"{self.path}: its files hold their tensors under different keys ({ways}); fetch it again"
            )
        return keys.pop(), {name: found[name] for name in sorted(found)}

    @property
    def _values(self) -> dict[str, tuple[Path, Tensor]]:
        return self._chosen[1]

    @property
    def key(self) -> str | None:
        """The way to the model in the files, `key`; None if it is all that is in them."""
        return self._chosen[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_torch, (self.path, self.checkpoints, self.config, self.wanted)  # another process maps them itself

    @property
    def input_first(self) -> Container[str]:
        """Names of weights that are stored as (in_features, out_features)."""
        return input_first(self._values, self.config)

    def tensors(self) -> dict[str, TensorInfo]:
        """Return name -> shape and dtype, in the order of the names; values stay on disk where torch can map them."""
        turned = self.input_first
        return {
            name: TensorInfo(tuple(x.mT.shape if name in turned else x.shape), dtype_name(x.dtype))
            for name, (_, x) in self._values.items()
        }

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in its stored dtype; weights as (out_features, in_features)."""
        found = self._values[name][1].detach()
        return (found.T if name in self.input_first else found).contiguous()

    def place(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        return self._values[name][0]

    def hashes(self) -> dict[str, str]:
        """Return file name -> SHA-256 of every file of the model."""
        return {path.name: sha256_of(path) for path in self.checkpoints}


def open_torch(
    path: Path, files: tuple[Path, ...] = (), config: Mapping[str, Any] | None = None, key: str | None = None
) -> TorchSource:
    """Open a checkpoint, or the checkpoints of a folder; key: which of several models in it.

    Raises SourceError for an empty or damaged one, one that holds code, or one without tensors; UsageError, listing
    them, for several models without a key.
    """
    source = TorchSource(path, files or (path,), config, key)
    source.tensors()
    return source


def _loaded(path: Path) -> Any:
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: is empty; fetch or save the model again")
    kind = kind_of(path)
    if kind is not None and kind is not Kind.TORCH:
        raise SourceError(f"{path}: is {kind.value}, not one of torch.save; name that file itself")
    try:
        is_zip = zipfile.is_zipfile(path)
        if is_zip:
            with zipfile.ZipFile(path) as archive:
                if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                    raise SourceError(f"{path}: is a compressed archive, which torch.save never writes; save it again")
        content = _plain(path, is_zip)
    except pickle.UnpicklingError as error:
        named = re.search(r"GLOBAL ([\w.]+)", str(error))
        by = (
            None if named is None else next((by for each, by in _QUANTIZERS.items() if named[1].startswith(each)), None)
        )
        if by is not None:
            raise SourceError(f"{path}: holds weights packed by {by} as objects of its own; {FROM}") from error
        what = f"would run {named.group(1)} when it is loaded" if named else "holds more than plain tensors"
        raise SourceError(
            f"{path}: {what}, so it is not loaded; save the model's state_dict() alone, "
            "or convert it with safetensors.torch.save_file"
        ) from error
    except SourceError:
        raise
    except Exception as error:  # torch raises many types for damaged files, assertions too
        raise SourceError(
            f"{path}: is not a whole file of torch.save ({first_line(error)}); fetch or save the model again"
        ) from error
    return content


def _plain(path: Path, is_zip: bool) -> Any:
    """Load what is plain data, mapped where torch can map it."""
    with quiet():  # torch warns of the pickles that it is going to refuse
        if path.suffix == ".safetensors":  # torch takes the name at its word; a file that is open has none
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True if is_zip else None)


def require_honest(path: Path, name: str, x: Tensor) -> None:
    """Refuse a tensor that says to be larger than what is stored for it: reading it would fill the memory."""
    if x.is_quantized:
        raise SourceError(f"{path}: tensor {name!r} is {quantized_by_torch(x)}")
    if x.is_sparse or x.layout != torch.strided:
        raise SourceError(f"{path}: tensor {name!r} is sparse; save it dense")
    if x.numel() * x.element_size() > x.untyped_storage().nbytes():
        raise SourceError(
            f"{path}: tensor {name!r} of shape {list(x.shape)} is larger than the {x.untyped_storage().nbytes()} "
            "bytes stored for it; such a file is not read"
        )
