"""Programs of torch.export, `.pt2`: weights and graph in one archive; nothing in it is unpickled."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spm_compress.checkpoint.files import sha256_of
from spm_compress.checkpoint.tensor_info import TensorInfo, dtype_name
from spm_compress.errors import SourceError, first_line

__all__ = ["ProgramSource", "open_program"]

# What a graph may call: torch's own operators and Python's, not any function of torch (torch.load is one).
_OPERATORS = ("torch.ops.aten.", "torch.ops.prims.", "torch.ops.higher_order.", "_operator.", "math.", "torch.sym_")
_FILES = "torch.ops.aten.from_file"


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
        _require_plain(self.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
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


def _require_plain(path: Path) -> None:
    """Refuse whatever torch.export.load would unpickle, or a graph that calls more than operators."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(each.compress_type != zipfile.ZIP_STORED for each in archive.infolist()):
                raise SourceError(f"{path}: is a compressed archive, which torch.export never writes; export it again")
            if not any(name.endswith("/archive_format") for name in names):
                raise SourceError(f"{path}: is not a program of torch.export of this format; export the model again")
            for name in names:
                if name.endswith("_config.json"):
                    for key, entry in json.loads(archive.read(name))["config"].items():
                        if entry.get("use_pickle") or not isinstance(entry.get("tensor_meta"), dict):
                            raise SourceError(
                                f"{path}: {key!r} is stored as a pickle, which can run code and is not loaded; "
                                "export the model with plain dense tensors"
                            )
                elif "/sample_inputs/" in name:
                    with archive.open(name) as file:
                        torch.load(file, weights_only=True)
                elif "/models/" in name:
                    for target in _targets(json.loads(archive.read(name))):
                        if not target.startswith(_OPERATORS) or target.startswith(_FILES):
                            raise SourceError(
                                f"{path}: its graph calls {target!r}, which is no operator; it is not run"
                            )
    except pickle.UnpicklingError as error:
        raise SourceError(f"{path}: its sample inputs are not plain tensors, and are not loaded") from error
    except SourceError:
        raise
    except Exception as error:  # zipfile and torch raise many types for damaged archives
        raise SourceError(
            f"{path}: is not a whole program of torch.export ({first_line(error)}); export the model again"
        ) from error


def _targets(value: Any) -> list[str]:
    """Return the targets of all nodes, in subgraphs too."""
    if isinstance(value, list):
        return [target for each in value for target in _targets(each)]
    if not isinstance(value, dict):
        return []
    own = [str(value["target"])] if {"target", "inputs", "outputs"} <= set(value) else []
    return own + [target for each in value.values() for target in _targets(each)]
