"""What every lowering is: a structure written as an ONNX function of the activations and the numbers."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer, Structure

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
        """Name in reports; its first word is the one that `lowering` takes."""

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

    shown = _input_names(structure)
    inputs = [ir.Value(name=each) for each in (("x", *shown) if takes_x else shown)]
    function = build_function(emitted, inputs, domain=DOMAIN, name=name, opset_imports={"": opset})
    for node in function:
        node.metadata_props.clear()  # the builder's notes on itself: 60 % of the function's bytes
    function.outputs[0].name = "y" if takes_x else "matrix"
    function.doc_string = _describe(structure, takes_x)
    return function


def _input_names(structure: Structure) -> list[str]:
    """Return `number_names` as a viewer shows them: without the chain's number where there is one chain."""
    one = len(structure.chains) == 1
    shown = []
    for name in number_names(structure):
        i, _, rest = name.partition(".")
        plain = rest.replace(".", "_")
        shown.append(plain if one or int(i) == len(structure.chains) else f"chain{i}_{plain}")
    return shown


_STAGES = {
    Mixer.ROTATION: "u' = cos(a) u - sin(a) v, v' = sin(a) u + cos(a) v",
    Mixer.GENERAL: "x' = direct * x + cross * x[partner]",
    Mixer.CANONICAL: "x' = x + cross * x[partner]",
}


def _describe(structure: Structure, takes_x: bool) -> str:
    """Say what the function computes, for who opens it in a viewer."""
    lines = [f"{'y = S x' if takes_x else 'the matrix S'}, S of {structure.out_features}x{structure.in_features}"]
    for chain in structure.chains:
        strides = " | ".join(", ".join(map(str, group.strides)) for group in chain.groups if group.stages)
        lines.append(f"{chain.stages} stages on {chain.width} features, strides {strides}")
    if structure.chains:
        lines.append(f"a stage: {_STAGES[structure.mixer]}")
    if structure.rank:
        lines.append(f"{'plus ' if structure.chains else ''}left (right x) of rank {structure.rank}")
    return "\n".join([*lines, f"{structure.parameter_count:,} numbers"])
