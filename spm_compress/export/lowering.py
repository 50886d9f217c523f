"""Writing one SPM as ONNX nodes: a local function a structure, the numbers as its inputs.

A lowering says how the map runs; all of them compute the same. Orders and partners that follow a formula
are written as that formula (Range, Mul, Mod), so the file holds the numbers and no index tables;
ONNX Runtime folds them to constants when it loads the model.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
from onnxscript import OpBuilder, build_function

from spm_compress.operator.pairing import IDENTITY, Affine, Group, pair_count
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Chain, Mixer, Structure

__all__ = ["DOMAIN", "Layout", "Lowering", "Stages", "lowerings", "number_arrays", "number_names"]

DOMAIN = "spm_compress"


class Layout(enum.Enum):
    """Which axis of the activations the features stand on while the stages run."""

    FEATURE_MAJOR = "feature-major"
    BATCH_MAJOR = "batch-major"


class Lowering(Protocol):
    """Writes a structure as an ONNX function of x and the numbers, x (..., in) -> (..., out)."""

    @property
    def name(self) -> str:
        """Name in the command line and in function names."""

    def function(self, structure: Structure, dtype: ir.DataType, opset: int, name: str) -> ir.Function:
        """Return the local function; inputs: x, then the arrays in the order of `number_names`."""


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


@dataclass(frozen=True)
class Stages:
    """Gather, Mul, Add for every stage: the portable form."""

    layout: Layout = Layout.FEATURE_MAJOR

    @property
    def name(self) -> str:
        """Name in the command line and in function names."""
        return f"stages-{self.layout.value}"

    def function(self, structure: Structure, dtype: ir.DataType, opset: int, name: str) -> ir.Function:
        """Return the local function; inputs: x, then the arrays in the order of `number_names`."""

        def body(op: OpBuilder, x: ir.Value, *arrays: ir.Value) -> ir.Value:
            named = dict(zip(number_names(structure), arrays, strict=True))
            return _StagesBody(op, self.layout, dtype).map(structure, named, x)

        inputs = [ir.Value(name="x")]
        inputs += [ir.Value(name=array.replace(".", "_")) for array in number_names(structure)]
        function = build_function(body, inputs, domain=DOMAIN, name=name, opset_imports={"": opset})
        for node in function:
            node.metadata_props.clear()  # the builder's notes on itself: 60 % of the function's bytes
        return function


class _StagesBody:
    """Emits the body of one function; values are (features, rows) or (rows, features) by layout."""

    def __init__(self, op: OpBuilder, layout: Layout, dtype: ir.DataType) -> None:
        self.op = op
        self.dtype = dtype
        self.feature_major = layout is Layout.FEATURE_MAJOR
        self.axis = 0 if self.feature_major else 1
        # Values that several stages ask for, so that the file has each once.
        self.known: dict[tuple[str | int, ...], ir.Value] = {}

    def map(self, structure: Structure, arrays: Mapping[str, ir.Value], x: ir.Value) -> ir.Value:
        op = self.op
        lead = op.Slice(op.Shape(x), self.integers(0), self.integers(-1))
        state = op.Reshape(x, self.integers(-1, structure.in_features))
        if self.feature_major:
            state = op.Transpose(state, perm=[1, 0])
        width = structure.in_features
        for i, chain in enumerate(structure.chains):
            own = {name.removeprefix(f"{i}."): value for name, value in arrays.items() if name.startswith(f"{i}.")}
            state = self.resize(state, width, chain.width)
            state = self.chain(chain, structure.mixer, own, state)
            width = chain.width
        state = self.resize(state, width, structure.out_features)
        if self.feature_major:
            state = op.Transpose(state, perm=[1, 0])
        return op.Reshape(state, op.Concat(lead, self.integers(structure.out_features), axis=0))

    def resize(self, state: ir.Value, width: int, new: int) -> ir.Value:
        op = self.op
        if new == width:
            return state
        if new > width:
            return op.Gather(state, op.Mod(self.positions(new), self.integer(width)), axis=self.axis)
        folds = -(-width // new)
        missing = folds * new - width
        if missing:
            state = op.Pad(state, self.integers(*((0, 0, missing, 0) if self.feature_major else (0, 0, 0, missing))))
        folded = op.Reshape(state, self.integers(*((folds, new, -1) if self.feature_major else (-1, folds, new))))
        return op.ReduceSum(folded, self.integers(self.axis), keepdims=0)

    def chain(self, chain: Chain, mixer: Mixer, arrays: Mapping[str, ir.Value], state: ir.Value) -> ir.Value:
        arrays = {name: v if name.startswith("order.") else self.cast(v) for name, v in arrays.items()}
        stage = angle = 0
        for boundary, group in enumerate(chain.groups):
            state = self.diagonal(chain, boundary, arrays, state)
            state = self.ordered(chain, boundary, group, arrays, state)
            for stride in group.strides:
                direct, cross = self.coefficients(chain.width, stride, mixer, arrays, stage, angle)
                state = self.stage(chain.width, stride, direct, cross, state)
                stage += 1
                angle += pair_count(chain.width, stride)
        return self.diagonal(chain, len(chain.groups), arrays, state)

    def stage(self, width: int, stride: int, direct: ir.Value | None, cross: ir.Value, state: ir.Value) -> ir.Value:
        op = self.op
        swapped = op.Gather(state, self.partners(width, stride), axis=self.axis)
        kept = state if direct is None else op.Mul(state, direct)
        return op.Add(kept, op.Mul(swapped, cross))

    def coefficients(
        self, width: int, stride: int, mixer: Mixer, arrays: Mapping[str, ir.Value], stage: int, angle: int
    ) -> tuple[ir.Value | None, ir.Value]:
        """Return direct (None stands for one) and cross of a stage, shaped to multiply the state."""
        op = self.op
        if mixer is Mixer.ROTATION:
            count = pair_count(width, stride)
            if not count:
                return None, self.along(op.Cast(op.Mul(self.positions(width), self.integer(0)), to=self.dtype))
            own = op.Slice(arrays["angles"], self.integers(angle), self.integers(angle + count), self.integers(0))
            position = self.positions(width)
            rank = op.Add(
                op.Mul(op.Div(position, self.integer(2 * stride)), self.integer(stride)),
                op.Mod(position, self.integer(stride)),
            )
            turn = op.Gather(own, op.Min(rank, self.integer(count - 1)), axis=0)
            upper = op.Greater(position, self.partners(width, stride))
            turn = self.where_paired(width, stride, op.Where(upper, turn, op.Neg(turn)))
            return self.along(op.Cos(turn)), self.along(op.Sin(turn))
        cross = self.where_paired(width, stride, self.row(arrays["cross"], stage))
        direct = None if mixer is Mixer.CANONICAL else self.along(self.row(arrays["direct"], stage))
        return direct, self.along(cross)

    def diagonal(self, chain: Chain, boundary: int, arrays: Mapping[str, ir.Value], state: ir.Value) -> ir.Value:
        if boundary not in chain.diagonals:
            return state
        row = self.row(arrays["diagonals"], chain.diagonals.index(boundary))
        return self.op.Mul(state, self.along(row))

    def ordered(
        self, chain: Chain, boundary: int, group: Group, arrays: Mapping[str, ir.Value], state: ir.Value
    ) -> ir.Value:
        op = self.op
        if group.order == IDENTITY:
            return state
        if isinstance(group.order, Affine):
            scaled = op.Mul(self.positions(chain.width), self.integer(group.order.multiplier))
            order = op.Mod(op.Add(scaled, self.integer(group.order.offset)), self.integer(chain.width))
        else:
            order = arrays[f"order.{boundary}"]
        return op.Gather(state, order, axis=self.axis)

    def positions(self, width: int) -> ir.Value:
        return self.once(
            ("positions", width),
            lambda: self.op.Range(self.integer(0), self.integer(width), self.integer(1)),
        )

    def integer(self, value: int) -> ir.Value:
        return self.once(("integer", value), lambda: self.op.Constant(value_int=value))

    def integers(self, *values: int) -> ir.Value:
        return self.once(("integers", *values), lambda: self.op.Constant(value_ints=values))

    def once(self, key: tuple[str | int, ...], make: Callable[[], ir.Value]) -> ir.Value:
        if key not in self.known:
            self.known[key] = make()
        return self.known[key]

    def partners(self, width: int, stride: int) -> ir.Value:
        """Position xor stride, for strides that are powers of two; a position without partner keeps itself."""
        return self.once(("partners", width, stride), lambda: self.xor(width, stride))

    def xor(self, width: int, stride: int) -> ir.Value:
        op = self.op
        position = self.positions(width)
        bit = op.Mod(op.Div(position, self.integer(stride)), self.integer(2))
        other = op.Sub(op.Add(position, self.integer(stride)), op.Mul(bit, self.integer(2 * stride)))
        if 2 * pair_count(width, stride) == width:
            return other
        return op.Where(op.Less(other, self.integer(width)), other, position)

    def where_paired(self, width: int, stride: int, values: ir.Value) -> ir.Value:
        op = self.op
        if 2 * pair_count(width, stride) == width:
            return values
        paired = op.Not(op.Equal(self.partners(width, stride), self.positions(width)))
        return op.Mul(values, op.Cast(paired, to=self.dtype))

    def row(self, array: ir.Value, index: int) -> ir.Value:
        return self.op.Gather(array, self.integer(index), axis=0)

    def cast(self, array: ir.Value) -> ir.Value:
        """Bring numbers stored in another dtype to that of the graph; without effect where they agree."""
        return self.op.Cast(array, to=self.dtype)

    def along(self, row: ir.Value) -> ir.Value:
        """Shape (features,) so that it multiplies every row of the state."""
        return self.op.Unsqueeze(row, self.integers(1)) if self.feature_major else row


def lowerings() -> Sequence[Lowering]:
    """Return every lowering there is."""
    return [Stages(layout) for layout in Layout]
