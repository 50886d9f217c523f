"""Inputs that a graph can take, for comparing and timing it.

1. What is known of the model is tried first: example inputs, whose integers and masks are kept as they are while their
   floats are drawn anew.
2. Without them: floats are normal, integers below the size of the table that they look up, masks and other truth values
   all one, then all zero, then drawn. (A mask may say what to leave out, and with everything left out nothing is
   computed.)
3. Last the example inputs to the letter.
4. The first inputs are taken on which the graph runs and answers with finite numbers; if it never does, the first on
   which it runs.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import onnxruntime

from spm_compress.errors import VerificationError
from spm_compress.export.verification import run

__all__ = ["SIZES", "Known", "Trial", "find_trial", "random_inputs"]

# Lengths and image sizes to try for the dynamic axes of a graph.
SIZES = (16, 32, 48, 64, 224, 320)
Fill = Literal["ones", "zeros", "drawn"]
_ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.FloorDiv: lambda a, b: a // max(1, b),
    ast.Div: lambda a, b: a // max(1, b),
}
_FILLS: tuple[Fill, ...] = ("ones", "zeros", "drawn")
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Known:
    """What is known of a graph's inputs.

    arrays: inputs that it can take, by name, the first axis being the samples; sizes: of its dynamic axes, tried last.
    """

    arrays: Arrays = field(default_factory=dict)
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Trial:
    """How inputs of any batch are made: the size of all other dynamic axes, what masks hold, what is known.

    exactly: whether known floats are taken as they are, too.
    """

    size: int = 16
    fill: Fill = "ones"
    known: Arrays = field(default_factory=dict)
    exactly: bool = False

    def inputs(self, model: ir.Model, batch: int, seed: int) -> dict[str, Any]:
        """Return the inputs of a graph at one batch."""
        drawn = random_inputs(model, batch, self.size, seed, self.fill)
        if not drawn.keys() <= self.known.keys():
            return drawn
        generator = np.random.default_rng(seed)
        return {name: self._known(self.known[name], array, generator) for name, array in drawn.items()}

    def _known(self, known: np.ndarray, drawn: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        # Samples in turns until the batch is full; a first axis that is fixed has the size that it has.
        rows = len(drawn) if drawn.ndim else 0
        array = known[np.arange(rows) % max(1, len(known))] if known.ndim and rows else known
        if np.issubdtype(drawn.dtype, np.floating) and not self.exactly:
            return generator.standard_normal(array.shape).astype(drawn.dtype)
        return np.ascontiguousarray(array.astype(drawn.dtype))


def find_trial(
    runtime: onnxruntime.InferenceSession,
    model: ir.Model,
    batch: int,
    sizes: Sequence[int] = SIZES,
    known: Known | None = None,
) -> Trial:
    """Return the first trial, under the rules above, at which a model runs.

    Convolutions and positions set limits to sizes that a graph does not state. Raises VerificationError if none does.
    """
    first: Trial | None = None
    last: VerificationError | None = None
    known = known or Known()
    sizes = tuple(dict.fromkeys((*sizes, *known.sizes)))
    for trial in _trials(model, sizes, known.arrays):
        try:
            outputs = run(runtime, trial.inputs(model, batch, seed=0))
        except VerificationError as error:
            last = error
            continue
        if all(np.isfinite(output).all() for output in outputs.values()):
            return trial
        first = first or trial
    if first is None:
        raise VerificationError(
            f"the dense model runs at none of the sizes {', '.join(map(str, sizes))}: {last}; give inputs that it can "
            "take with `known`"
        )
    return first


def _trials(model: ir.Model, sizes: Sequence[int], known: Arrays) -> Iterator[Trial]:
    if known:
        yield Trial(sizes[0], "ones", known)
    has_mask = any(_is_mask(value) for value in model.graph.inputs)
    for fill in _FILLS if has_mask else _FILLS[:1]:
        for size in sizes:
            yield Trial(size, fill)
    if known:
        yield Trial(sizes[0], "ones", known, exactly=True)


def random_inputs(model: ir.Model, batch: int, sequence: int, seed: int, fill: Fill = "ones") -> dict[str, Any]:
    """Draw inputs for a graph: its first axis is `batch`, others are `sequence`, and what is computed of them follows.

    An axis may be called "past + sequence", "2*sequence" or "sequence + 1"; one that begins with "total" is the past
    and the sequence together.

    Floats are normal, masks hold what `fill` says, integers are below the size of the table that they look up.
    """
    generator = np.random.default_rng(seed)
    inputs: dict[str, Any] = {}
    has_past = any("past" in axis for axis in _axes(model))
    for value in model.graph.inputs:
        if value.name is None or value.name in model.graph.initializers:
            continue
        if isinstance(value.type, ir.OptionalType):
            inputs[value.name] = None
            continue
        kind = value.type
        shape = [_size(dim, batch if i == 0 else sequence, has_past) for i, dim in enumerate(value.shape or ())]
        dtype = (value.dtype or ir.DataType.FLOAT).numpy()
        if np.issubdtype(dtype, np.floating):
            inputs[value.name] = generator.standard_normal(shape).astype(dtype)
        elif _is_mask(value):
            made = {"ones": np.ones(shape), "zeros": np.zeros(shape), "drawn": generator.integers(0, 2, shape)}
            inputs[value.name] = made[fill].astype(dtype)
        else:
            inputs[value.name] = generator.integers(0, _rows_looked_up(value), shape).astype(dtype)
        if isinstance(kind, ir.SequenceType):
            inputs[value.name] = [inputs[value.name]]
    return inputs


def _is_mask(value: ir.Value) -> bool:
    if value.dtype is None or value.dtype.is_floating_point():
        return False
    return value.dtype == ir.DataType.BOOL or "mask" in (value.name or "")


def _axes(model: ir.Model) -> set[str]:
    shapes = (value.shape for value in model.graph.inputs if value.shape is not None)
    return {str(dim.value) for shape in shapes for dim in shape if not isinstance(dim, int) and dim.value}


def _size(dim: Any, dynamic: int, has_past: bool) -> int:
    if isinstance(dim, int):
        return dim if dim > 0 else dynamic  # some exporters write a dynamic axis as -1 or 0
    name = str(dim.value or "")
    if name.startswith("total") and has_past:
        return 2 * dynamic
    try:
        found = _computed(ast.parse(name.strip(), mode="eval").body, dynamic)
    except (SyntaxError, ValueError):
        return dynamic  # a name with other signs in it
    return found if found > 0 else dynamic


def _computed(term: ast.expr, dynamic: int) -> int:
    """Return what an expression of names of axes comes to, if each is `dynamic`. Raises ValueError for any other."""
    match term:
        case ast.Name():
            return dynamic
        case ast.Constant(value=int(number)):
            return number
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in _ARITHMETIC:
            first, second = _computed(left, dynamic), _computed(right, dynamic)
            return _ARITHMETIC[type(operator)](first, second)
    raise ValueError(ast.unparse(term))


def _rows_looked_up(value: ir.Value) -> int:
    """Return the least number of rows of the tables that an integer input indexes; 2 if none is seen."""
    rows = []
    for node, index in value.uses():
        table = node.inputs[0]
        if node.op_type == "Gather" and index == 1 and table is not None and table.shape is not None:
            size = table.shape[0]
            rows += [size] if isinstance(size, int) else []
        elif node.op_type in ("Cast", "Identity"):
            rows.append(_rows_looked_up(node.outputs[0]))
    return min(rows, default=2)
