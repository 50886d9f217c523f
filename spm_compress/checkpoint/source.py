"""Trained models on disk, behind one interface; never unpickled."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from spm_compress.checkpoint.contents import Kind, kind_of
from spm_compress.checkpoint.factory_source import FactorySource, open_factory
from spm_compress.checkpoint.gguf_source import open_gguf
from spm_compress.checkpoint.onnx_source import open_onnx
from spm_compress.checkpoint.program_source import open_program
from spm_compress.checkpoint.safetensors_source import open_safetensors
from spm_compress.checkpoint.tensor_info import TensorInfo
from spm_compress.checkpoint.torch_source import SUFFIXES, TorchSource, open_torch
from spm_compress.errors import SourceError, UsageError, near_misses

__all__ = ["LazyTensors", "Source", "files_of", "key_of", "open_source", "read_finite"]

_SUFFIXES = (".safetensors", ".json", ".onnx", ".pt2", ".gguf", *SUFFIXES)


class Source(Protocol):
    """A trained model: its tensors, one at a time, and what is known of its graph."""

    @property
    def path(self) -> Path:
        """What the user named."""

    @property
    def config(self) -> Mapping[str, Any] | None:
        """The Hugging Face config.json, if the model has one."""

    @property
    def graph(self) -> Path | None:
        """The ONNX file with the model's graph, if it is one."""

    @property
    def input_first(self) -> Container[str]:
        """Names of weights that the files hold as (in_features, out_features), unlike what `read` returns."""

    def tensors(self) -> dict[str, TensorInfo]:
        """Return name -> shape and dtype, in the order of the names, without reading values."""

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU; weights as (out_features, in_features)."""

    def place(self, name: str) -> Path:
        """Return the file that holds a tensor."""

    def hashes(self) -> dict[str, str]:
        """Return file name -> SHA-256 of every file of the model."""


class LazyTensors(Mapping[str, Tensor]):
    """Some tensors of a source by name, each read when it is asked for: a large model is never in memory at once."""

    def __init__(self, source: Source, names: Iterable[str]) -> None:
        self._source = source
        self._names = dict.fromkeys(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._source.read(name)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def files_of(source: Source) -> set[Path]:
    """Return the files that a source is read from, and what the user named."""
    return {source.path, *map(source.place, source.tensors())}


def read_finite(source: Source, name: str) -> Tensor:
    """Return one tensor as `Source.read`. Raises SourceError naming it if it holds NaN or infinity."""
    tensor = source.read(name)
    bad = int((~tensor.isfinite()).sum())
    if bad:
        raise SourceError(
            f"{source.place(name)}: tensor {name!r} holds {bad} NaN or infinite values; "
            f"repair the model or leave it out with `exclude` {name!r}"
        )
    return tensor


def key_of(source: Source) -> str | None:
    """Return the way to the model in a file of torch.save that holds more than one thing, None if it is all there."""
    if isinstance(source, FactorySource):
        return None if source.weights is None else key_of(source.weights)
    return source.key if isinstance(source, TorchSource) else None


def open_source(path: Path | None, factory: str | None = None, key: str | None = None) -> Source:
    """Open a model: safetensors (a file, an index, a Hugging Face folder), torch.save, torch.export, ONNX or GGUF.

    What is in a file decides, not its name.
    factory: `module:function` that builds the model, with its own weights if there is no path (`open_factory`).
    key: which of several models in a file of torch.save, such as `ema` or `nets.generator`.
    Raises SourceError, with what to do, for a missing, empty, damaged or foreign file; UsageError for neither path nor
    factory, for several models without a key (it lists them), and for a key that is not there.
    """
    if factory is not None:
        if path is None and key is not None:
            raise UsageError(f"`key` {key}: is for a file of torch.save; what a factory builds is one model")
        return open_factory(factory, None if path is None else open_source(path, key=key))
    if path is None:
        raise UsageError("there is no model; name a file or folder, or a function with `factory` module:function")
    if not path.exists():
        raise _missing(path)
    source = _opened(path, key)
    if key is not None and not isinstance(source, TorchSource):
        raise UsageError(f"{path}: is no file of torch.save, so `key` {key} chooses nothing in it; leave it out")
    return source


def _missing(path: Path) -> SourceError:
    beside = path.parent if path.parent.is_dir() else Path()
    known = [each.name for each in beside.iterdir() if each.is_dir() or each.suffix in _SUFFIXES]
    if path.is_symlink():
        return SourceError(f"{path}: is a link to {str(path.readlink())!r}, which is not there; fetch the model again")
    return SourceError(f"{path}: no such file or folder{near_misses(path.name, known)}")


def _opened(path: Path, key: str | None) -> Source:
    if path.name.endswith(".index.json") or (path.is_dir() and path.suffix != ".onnx"):
        return open_safetensors(path, key)
    kind = _named(path) if path.is_dir() else kind_of(path) or _named(path)
    if kind is Kind.ONNX:
        return open_onnx(path)
    if kind is Kind.PROGRAM:
        return open_program(path)
    if kind is Kind.GGUF:
        return open_gguf(path)
    if kind is Kind.TORCH:
        return open_torch(path, key=key)
    if kind is Kind.SAFETENSORS:
        return open_safetensors(path)
    if path.stat().st_size == 0:
        raise SourceError(f"{path}: is empty; fetch or save the model again")
    raise SourceError(
        f"{path}: not a format that can be read; give a .safetensors file, a .safetensors.index.json, a .pt, .pth "
        "or .bin of torch.save, a .pt2 of torch.export, a .gguf, a Hugging Face folder or an .onnx file (or convert "
        "with safetensors.torch.save_file)"
    )


def _named(path: Path) -> Kind | None:
    """Return what a file says by its name to be."""
    kinds = {".onnx": Kind.ONNX, ".pt2": Kind.PROGRAM, ".gguf": Kind.GGUF, ".safetensors": Kind.SAFETENSORS}
    return kinds.get(path.suffix, Kind.TORCH if path.suffix in SUFFIXES else None)
