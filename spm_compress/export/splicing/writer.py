"""The nodes, functions and initializers that a splice puts into a graph, each function and array once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.free_names import free_name
from spm_compress.checkpoint.uses import is_handed_out, readers
from spm_compress.codecs import Codec, Grid
from spm_compress.errors import ExportError
from spm_compress.export.splicing.alike import Alike
from spm_compress.export.splicing.matches import Digests, Lookup, Match
from spm_compress.export.splicing.transposes import LAST, Transposes, is_transpose
from spm_compress.forms.emitter import precision_of
from spm_compress.forms.folding import in_pieces, most_maps, pieced, require_foldable
from spm_compress.forms.form import Form, numbers_of
from spm_compress.forms.local_function import DOMAIN
from spm_compress.forms.lowering import Dense, Lowering, NBits, Rows
from spm_compress.forms.onnx_function import Written, write_functions
from spm_compress.forms.stored import StoredOperator

__all__ = ["NBITS_OPSET", "Placed", "Writer", "initializer"]


# DequantizeLinear has blocks, and takes int4, from this opset on.
NBITS_OPSET = 21


@dataclass(frozen=True)
class Placed:
    """A layer at one product: how it runs there, and its operator or the transposed one under a name of its own.

    The transposed one is in float32: its numbers are others, and would round in another way.
    """

    layer: FittedLayer
    lowering: Lowering
    name: str
    stored: StoredOperator

    @staticmethod
    def of(layer: FittedLayer, lowering: Lowering, *, transposed: bool = False) -> Placed:
        """Return the layer as it is, or transposed."""
        if transposed:
            stored = StoredOperator.of(layer.operator.transposed())
            return Placed(layer, lowering, f"{layer.name}.transposed", stored)
        return Placed(layer, lowering, layer.name, layer.stored)


# Files have had tensors of int4 since.
_INT4_IR_VERSION = 10
# Layers of one kind share their functions.
_Kind = tuple[Form, tuple[Codec, ...], Lowering, ir.DataType]


def _value_names(model: ir.Model) -> set[str]:
    values = [value for node in model.graph.all_nodes() for value in (*node.inputs, *node.outputs) if value is not None]
    return {value.name for value in (*values, *model.graph.initializers.values(), *model.graph.inputs) if value.name}


class Writer:
    """Adds functions, initializers and nodes to one model, each function and array once."""

    def __init__(self, model: ir.Model, opset: int) -> None:
        self.model = model
        self.opset = opset
        self.functions: dict[_Kind, Written] = {}
        self.alike: dict[_Kind, list[Alike]] = {}
        self.transposes: dict[ir.Graph, Transposes] = {}
        self.matrices: dict[object, tuple[str, ir.Value]] = {}
        self.taken = {node.name for node in model.graph.all_nodes() if node.name}
        self.values = _value_names(model)
        self.prefixes: dict[str, str] = {}
        self.ours: set[ir.Value] = set()  # initializers

    def replace(self, match: Match, lowering: Lowering) -> str:
        """Put the operator where the product was, or before it; return the new node's name."""
        old, layer = match.product.node, match.layer
        x, dense, graph = old.inputs[0], old.outputs[0], old.graph
        assert x is not None and isinstance(graph, ir.Graph)
        dtype = dense.dtype or x.dtype or ir.DataType.FLOAT
        if match.product.is_plain:
            lowering = pieced(layer.form, lowering, _item(dtype))
        if lowering.layout is None:
            return self._make_matrix(match)
        placed = Placed.of(layer, lowering, transposed=match.transposed)
        new: list[ir.Node] = []
        rank = len(match.product.tensor.shape)
        if old.op_type == "Conv":
            new.append(ir.Node("", "Transpose", [x], [ir.AttrInt64s("perm", [0, *range(2, rank), 1])]))
            x = new[-1].outputs[0]
        new += self.layer(placed, x, dtype, graph)
        call = next(node for node in new if node.op_type in self._function_names())
        bias = old.inputs[2] if len(old.inputs) > 2 else None
        if bias is not None:
            new.append(ir.Node("", "Add", [new[-1].outputs[0], bias], name=f"{call.name}.bias"))
        if old.op_type == "Conv":
            perm = ir.AttrInt64s("perm", [0, rank - 1, *range(1, rank - 1)])
            new.append(ir.Node("", "Transpose", [new[-1].outputs[0]], [perm]))
        elif dense.shape is not None:
            for node in new:  # what the axis of the features is decided by
                if node.op_type == "Add" or is_transpose(node, LAST):
                    node.outputs[0].shape, node.outputs[0].type = dense.shape, dense.type
        result = new[-1].outputs[0]
        _name_around(call, new, self._prefix(f"{call.name}.spm"))
        result.name, result.type, result.shape = dense.name, dense.type, dense.shape
        ir.convenience.replace_nodes_and_values(graph, old, [old], new, [dense], [result])
        assert call.name is not None
        return call.name

    def replace_lookup(self, lookup: Lookup) -> str:
        """Put a lookup of stored rows where that of dense ones was; return the new node's name."""
        old, graph = lookup.node, lookup.node.graph
        rows, found = old.inputs[1], old.outputs[0]
        assert rows is not None and isinstance(graph, ir.Graph)
        placed = Placed.of(lookup.layer, Rows())
        dtype = found.dtype or lookup.table.dtype or ir.DataType.FLOAT
        call = self._call(placed, [rows], dtype, self._free_name(f"{placed.name}.rows"))
        result = call.outputs[0]
        result.name, result.type, result.shape = found.name, found.type, found.shape
        ir.convenience.replace_nodes_and_values(graph, old, [old], [call], [found], [result])
        assert call.name is not None
        return call.name

    def _make_matrix(self, match: Match) -> str:
        """Multiply with a made matrix instead of the stored one."""
        product = match.product
        dtype = ir.DataType.from_numpy(product.matrix().dtype)
        sizes = tuple(product.tensor.shape.numpy()[2:])  # ones, of a convolution's kernel
        name, matrix = self._made(match.layer, dtype, product.operand_is_e == match.transposed, sizes)
        product.node.replace_input_with(product.operand, matrix)
        return name

    def replace_elsewhere(self, match: Match) -> list[str]:
        """Let all else that reads the stored weight read the made matrix; return the kinds of those nodes."""
        held, is_transposed = match.product.held
        kinds = ["another product" if node.domain == DOMAIN else node.op_type for node, _ in readers(held)]
        kinds += ["an output of the graph"] * is_handed_out(held)
        if kinds:
            sizes = tuple(match.product.tensor.shape.numpy()[2:])
            dtype = held.dtype or match.product.tensor.dtype
            _, matrix = self._made(match.layer, dtype, is_transposed != match.transposed, sizes)
            for node, index in list(held.uses()):
                node.replace_input_with(index, matrix)
        return kinds

    def replace_copies(
        self, layers: Mapping[tuple[str, tuple[int, int]], FittedLayer], digests: Digests
    ) -> dict[str, list[str]]:
        """Let what reads another copy of a fitted weight, either way around, read the made matrix too.

        A table that its head holds transposed is one. layers: by the digests and shapes of their weights. Returns
        layer -> kinds of those nodes.
        """
        shapes = {shape for layer in layers.values() for shape in (layer.shape, layer.shape[::-1])}
        kinds: dict[str, list[str]] = {}
        for value in list(self.model.graph.initializers.values()):
            tensor = value.const_value
            if value in self.ours or tensor is None or not tensor.dtype.is_floating_point():
                continue  # ours may equal a fitted weight, too: the stored array of a dense map does
            if tensor.shape.numpy() not in shapes:
                continue
            out, into = tensor.shape.numpy()
            for is_transposed in (False, True):
                digest = digests.of_tensor(tensor, transposed=is_transposed)
                layer = layers.get((digest, (into, out) if is_transposed else (out, into)))
                if layer is not None and value.uses():
                    kinds.setdefault(layer.name, []).extend(node.op_type for node, _ in value.uses())
                    _, made = self._made(layer, tensor.dtype, is_transposed, ())
                    ir.convenience.replace_all_uses_with(value, made)
        return kinds

    def _made(
        self, layer: FittedLayer, dtype: ir.DataType, is_transposed: bool, sizes: tuple[int, ...]
    ) -> tuple[str, ir.Value]:
        """Return the value of the multiplied-out matrix, or its transpose, and the name of the node that makes it.

        sizes: ones that follow the two dimensions. All that reads the same matrix shares what is made.
        """
        key = (layer.name, dtype, is_transposed, sizes)
        if key not in self.matrices:
            name = self._free_name(layer.name)
            new = [self._call(Placed.of(layer, Dense()), [], dtype, name)]
            if is_transposed:
                new.append(ir.Node("", "Transpose", [new[-1].outputs[0]], [ir.AttrInt64s("perm", [1, 0])]))
            if sizes:
                shape = ir.tensor([*(layer.shape[::-1] if is_transposed else layer.shape), *sizes])
                constant = ir.Node("", "Constant", [], [ir.AttrTensor("value", shape)])
                new += [constant, ir.Node("", "Reshape", [new[-1].outputs[0], constant.outputs[0]])]
            prefix = self._prefix(f"{name}.matrix")
            for i, node in enumerate(new):
                node.outputs[0].name = f"{prefix}.{i}"
            # Right after what it is made of, before all else: bodies of loops and branches see it too.
            self.model.graph.insert_after(_last_producer(new[0]), new)
            self.matrices[key] = name, new[-1].outputs[0]
        return self.matrices[key]

    def _prefix(self, wanted: str) -> str:
        """Return the prefix, or PREFIX.2, PREFIX.3, ..., of names of ours that no value of the graph begins with."""
        if wanted not in self.prefixes:
            self.prefixes[wanted] = free_name(
                wanted, lambda prefix: any(name.startswith(f"{prefix}.") for name in self.values)
            )
        return self.prefixes[wanted]

    def layer(self, placed: Placed, x: ir.Value, dtype: ir.DataType, graph: ir.Graph) -> list[ir.Node]:
        """Return the call of the operator's function on x, named after the layer, between the transposes that it needs.

        The nodes are not in a graph yet. A lowering that makes the matrix gets the product with it.
        """
        placed = replace(placed, lowering=pieced(placed.stored.form, placed.lowering, _item(dtype)))
        free, layout = self._free_name(placed.name), placed.lowering.layout
        if layout is None:
            call = self._call(placed, [], dtype, free)
            transposed = ir.Node("", "Transpose", [call.outputs[0]], [ir.AttrInt64s("perm", [1, 0])])
            return [call, transposed, ir.Node("", "MatMul", [x, transposed.outputs[0]])]
        transposes = self.transposes.setdefault(graph, Transposes(self.model, self.opset))
        before = transposes.into(layout, x)
        call = self._call(placed, [before[-1].outputs[0] if before else x], dtype, free)
        return [*before, call, *transposes.back(layout, call.outputs[0], x, placed.stored.form.out_features)]

    def _call(self, placed: Placed, x: list[ir.Value], dtype: ir.DataType, free: str) -> ir.Node:
        prefix, form = self._prefix(f"{placed.name}.spm"), placed.stored.form
        require_foldable(placed.layer.name, form, placed.lowering, _item(dtype))
        stored = in_pieces(placed.stored, placed.lowering, _item(dtype))
        kind = form, tuple(stored.codecs.values()), placed.lowering, dtype
        written = self._functions(kind, stored)
        if isinstance(placed.lowering, NBits):
            given = self._nbits_parts(stored, prefix)
        else:
            given = self._parts(stored, prefix)
            if written.constants is not None:
                given = self._alike(kind, written, placed.name).share(placed.name, given, prefix)
        given += self._tables(written, form)
        return ir.Node(DOMAIN, written.function.name, [*x, *given], name=free, doc_string=_describe(placed))

    def _parts(self, stored: StoredOperator, prefix: str) -> list[ir.Value]:
        """Return the stored parts of all arrays."""
        parts = {name: tensor for name, tensor in stored.tensors.items() if name not in stored.form.tables}
        # No Reshape gives an empty array the axis of the maps, so it comes with it.
        return [
            self._initializer(f"{prefix}.{name}", tensor if tensor.numel() else tensor[None])
            for name, tensor in parts.items()
        ]

    def _nbits_parts(self, stored: StoredOperator, prefix: str) -> list[ir.Value]:
        """Return the parts of a dense map in 4 bits, its codes as levels, int4 (in, out)."""
        self.model.ir_version = max(self.model.ir_version, _INT4_IR_VERSION)
        (array,) = stored.arrays.values()
        assert isinstance(array.codec, Grid)
        levels = array.codec.packing.unpack(array.parts["codes"], array.shape) + array.codec.first
        codes = levels.to(torch.int8).T.contiguous().numpy()
        first = initializer(self.model.graph, f"{prefix}.weight.int4", codes, ir.DataType.INT4)
        self.ours.add(first)
        others = {name: part for name, part in array.parts.items() if name != "codes"}
        return [first, *(self._initializer(f"{prefix}.weight.{name}", part) for name, part in others.items())]

    def _tables(self, written: Written, form: Form) -> list[ir.Value]:
        """Return the index tables, which belong to the form."""
        prefix = self._prefix(written.function.name)
        return [self._initializer(f"{prefix}.{name}", table) for name, table in form.tables.items()]

    def _alike(self, kind: _Kind, written: Written, layer: str) -> Alike:
        """Return the layers of a kind that one comes to."""
        known = self.alike.setdefault(kind, [])
        found = next((each for each in known if each.takes(layer)), None)
        if found is None:
            prefix = self._prefix(f"{written.function.name}.{len(known)}")
            tables = self._tables(written, kind[0])
            most = most_maps(kind[0], kind[2], _item(kind[3]))
            found = Alike(self.model, written, most, self._free_name(prefix), tables, self.values)
            known.append(found)
        return found

    def _initializer(self, name: str, values: Tensor) -> ir.Value:
        value = initializer(self.model.graph, name, values)
        self.ours.add(value)
        return value

    def _free_name(self, name: str) -> str:
        free = free_name(name.removesuffix(".weight"), self.taken)
        self.taken.add(free)
        return free

    def _functions(self, kind: _Kind, stored: StoredOperator) -> Written:
        if isinstance(kind[2], NBits) and self.opset < NBITS_OPSET:
            raise ExportError(
                f"the graph has opset {self.opset}, 4 bits in memory need {NBITS_OPSET} or later; convert it with "
                "onnx.version_converter.convert_version, or export with `weights` folded"
            )
        if kind not in self.functions:
            form, _, lowering, dtype = kind
            size = "".join(f"_{value}{name}" for name, value in form.summary.items() if isinstance(value, int))
            plain = f"{form.kind.upper()}_{form.out_features}x{form.in_features}{size}_{lowering.name.split()[0]}"
            taken = self._function_names()
            name = next(n for n in (plain, *(f"{plain}_{i}" for i in range(2, len(taken) + 3))) if n not in taken)
            written = write_functions(stored, lowering, dtype, self.opset, name)
            for function in (*written.needed, written.constants, written.function):
                if function is not None:
                    self.model.functions[function.identifier()] = function
            self.model.graph.opset_imports[DOMAIN] = 1
            self.functions[kind] = written
        return self.functions[kind]

    def _function_names(self) -> set[str]:
        return {written.function.name for written in self.functions.values()}


def _item(dtype: ir.DataType) -> int:
    """Return the bytes of a coefficient for activations of a dtype."""
    return int(precision_of(dtype).itemsize)


def _name_around(call: ir.Node, nodes: Sequence[ir.Node], prefix: str) -> None:
    """Name what stands around a layer's call after it: values PREFIX.x into it and PREFIX.y out of it."""
    at = nodes.index(call)
    for i, node in enumerate(nodes):
        if node.name is None:
            step = re.sub("(?<=[a-z])(?=[A-Z])", "_", node.op_type).lower()
            node.name = f"{call.name}.{step}" + (".before" if node.op_type == "Transpose" and i < at else "")
        if i < len(nodes) - 1:
            node.outputs[0].name = f"{prefix}." + {at - 1: "x", at: "y"}.get(i, str(i))


def _last_producer(node: ir.Node) -> ir.Node:
    """Return the node whose output is the last of a node's inputs that is computed."""
    producers = [value.producer() for value in node.inputs if value is not None]
    return [each for each in producers if each is not None][-1]


def _describe(placed: Placed) -> str:
    layer, form = placed.layer, placed.stored.form
    out, into = form.out_features, form.in_features
    lines = [f"{layer.name}: {out}x{into}, run as {placed.lowering.name}"]
    lines.append(", ".join([form.kind, *(f"{name} {value}" for name, value in form.summary.items())]))
    count = numbers_of(form)
    lines.append(f"{count:,} numbers instead of {out * into:,} ({count / (out * into):.1%})")
    other = "" if layer.svd_error is None else f", of an SVD of equal size {layer.svd_error:.3f}"
    lines.append(f"relative error of the weight {layer.error:.3f}{other}")
    if layer.output_error is not None and layer.svd_output_error is not None:
        lines.append(f"of the outputs {layer.output_error:.3f}, of an SVD {layer.svd_output_error:.3f}")
    return "\n".join(lines)


def initializer(graph: ir.Graph, name: str, values: Tensor | np.ndarray, dtype: ir.DataType | None = None) -> ir.Value:
    """Return the initializer of that name, made of the values (index tables as int32) if there is none."""
    if name not in graph.initializers:
        if isinstance(values, Tensor):
            values = (values.to(torch.int32) if values.dtype == torch.int64 else values).contiguous().numpy()
        tensor = ir.tensor(values if dtype is None else values.astype(dtype.numpy()), name=name)
        value = ir.Value(
            name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        graph.register_initializer(value)
    return graph.initializers[name]
