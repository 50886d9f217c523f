"""What every lowering is: a structure written as an ONNX function of the activations and the numbers."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Structure

__all__ = ["DOMAIN", "Layout", "Lowering", "number_arrays", "number_names", "write_function"]

DOMAIN = "spm_compress"


class Layout(enum.Enum):
    """Which axis the features stand on: (features, rows) or (rows, features)."""

    FEATURE_MAJOR = "feature-major"
    BATCH_MAJOR = "batch-major"


class Lowering(Protocol):
    """Writes a structure as an ONNX function; all lowerings compute the same, each in its own way."""

    @property
    def name(self) -> str:
        """Name in reports; its first word is the one that `--lowering` takes."""

    @property
    def layout(self) -> Layout | None:
        """How x comes and y leaves; None: the function has no x and returns the matrix (out, in)."""

    def function(self, structure: Structure, dtype: ir.DataType, opset: int, name: str) -> ir.Function:
        """Return the local function; inputs: x (if it has a layout), then the arrays of `number_names`.

        dtype: of x and y, or of the matrix. The numbers may have another one.
        """


def number_names(structure: Structure) -> list[str]:
    """Return the names of the arrays of an SPM, chain by chain: numbers, then stored orders."""
    names = [f"{i}.{name}" for i, named in enumerate(structure.shapes()) for name in named]
    return names + [f"{i}.order.{g}" for i, g in structure.tables]


def number_arrays(spm: SPM) -> dict[str, Any]:
    """Return name -> torch tensor for every name of `number_names`."""
    arrays = {f"{i}.{name}": array for i, named in enumerate(spm.numbers) for name, array in named.items()}
    for i, g in spm.structure.tables:
        arrays[f"{i}.order.{g}"] = spm.structure.chains[i].groups[g].order.indices(0)
    return arrays


def write_function(
    structure: Structure,
    body: Callable[[OpBuilder, ir.Value | None, Mapping[str, ir.Value]], ir.Value],
    opset: int,
    name: str,
    *,
    takes_x: bool = True,
) -> ir.Function:
    """Return the function whose nodes `body(op, x or None, name -> array)` emits."""
    names = number_names(structure)

    def emitted(op: OpBuilder, *values: ir.Value) -> ir.Value:
        x, arrays = (values[0], values[1:]) if takes_x else (None, values)
        return body(op, x, dict(zip(names, arrays, strict=True)))

    inputs = [ir.Value(name=each.replace(".", "_")) for each in (("x", *names) if takes_x else names)]
    function = build_function(emitted, inputs, domain=DOMAIN, name=name, opset_imports={"": opset})
    for node in function:
        node.metadata_props.clear()  # the builder's notes on itself: 60 % of the function's bytes
    return function
