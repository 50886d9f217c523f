"""Programs of torch.export, `.pt2`: weights and graph in one archive; nothing in it is unpickled."""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spm_compress.checkpoint.files import sha256_of
from spm_compress.checkpoint.plain_program import described_types, require_plain_program
from spm_compress.checkpoint.tensor_info import TensorInfo, dtype_name
from spm_compress.checkpoint.torch_source import require_honest
from spm_compress.errors import SourceError, first_line
from spm_compress.quiet import quiet

__all__ = ["ProgramSource", "open_program"]


# Where transformers has the classes of what its models return; torch knows those that are imported.
_OUTPUTS = re.compile(r"transformers\.(modeling_outputs|cache_utils|models\.\w+\.modeling_\w+)")


@dataclass(frozen=True)
class ProgramSource:
    """A Source of one exported program."""

    path: Path
    config: Mapping[str, Any] | None = None
    input_first: Container[str] = ()
    graph: Path | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return open_program, (self.path,)  # another process reads it itself

    @cached_property
    def program(self) -> torch.export.ExportedProgram:
        """The program, on the CPU."""
        require_plain_program(self.path)
        _import_outputs(described_types(self.path))
        try:
            with quiet():  # torch logs a traceback of its own
                return torch.export.load(self.path)
        except Exception as error:  # torch raises many types for a damaged archive
            raise SourceError(
                f"{self.path}: is not a whole program of torch.export ({first_line(error)}); export the model again"
            ) from error

    @cached_property
    def _values(self) -> dict[str, Tensor]:
        found = {name: x.detach() for name, x in self.program.state_dict.items() if isinstance(x, Tensor)}
        if not found:
            raise SourceError(f"{self.path}: holds no tensors; there is nothing to compress")
        for name, x in found.items():
            require_honest(self.path, name, x)
        return dict(sorted(found.items()))

    def tensors(self) -> dict[str, TensorInfo]:
        """Return name -> shape and dtype, in the order of the names."""
        return {name: TensorInfo(tuple(x.shape), dtype_name(x.dtype)) for name, x in self._values.items()}

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, in its stored dtype."""
        return self._values[name].contiguous()

    def place(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        del name
        return self.path

    def hashes(self) -> dict[str, str]:
        """Return file name -> SHA-256."""
        return {self.path.name: sha256_of(self.path)}


def open_program(path: Path) -> ProgramSource:
    """Open a program. Raises SourceError for a damaged or empty one, or one that would run code when it is loaded."""
    source = ProgramSource(path)
    source.tensors()
    return source


def _import_outputs(types: Iterable[str]) -> None:
    for module in {name.rpartition(".")[0] for name in types}:
        if _OUTPUTS.fullmatch(module):
            with contextlib.suppress(ImportError):  # torch says then that it does not know the type
                importlib.import_module(module)
