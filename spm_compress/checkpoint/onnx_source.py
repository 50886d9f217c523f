"""ONNX models: the graph, and the matrices in it that a fit can replace."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from onnx_ir.passes.common import RemoveInitializersFromInputsPass
from torch import Tensor

from spm_compress.checkpoint.contents import told_apart
from spm_compress.checkpoint.files import sha256_of
from spm_compress.checkpoint.free_names import free_name
from spm_compress.checkpoint.products import Product, inline_products, products, stored_tensor
from spm_compress.checkpoint.tensor_info import TensorInfo
from spm_compress.checkpoint.uses import role_of
from spm_compress.errors import SourceError, first_line, near_misses
from spm_compress.quiet import quiet

__all__ = ["OnnxSource", "all_tensors", "open_graph", "open_onnx"]

_DTYPES = {
    ir.DataType.DOUBLE: "F64",
    ir.DataType.FLOAT: "F32",
    ir.DataType.FLOAT16: "F16",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.INT64: "I64",
    ir.DataType.INT32: "I32",
    ir.DataType.INT16: "I16",
    ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8",
    ir.DataType.BOOL: "BOOL",
    ir.DataType.INT4: "I4",
    ir.DataType.UINT4: "U4",
}
_QUANTIZED = {4: "Q4", 8: "Q8"}
# Until this version every initializer had to be an input as well.
_INITIALIZERS_ARE_INPUTS = 3


@dataclass(frozen=True)
class OnnxSource:
    """A Source of one ONNX model: the matrices of its products, and its other tensors as they are.

    infos: name -> shape, dtype and use; factors: name -> product of which it is the matrix; others: name -> tensor.
    """

    path: Path
    infos: Mapping[str, TensorInfo]
    factors: Mapping[str, Product]
    others: Mapping[str, ir.TensorProtocol]
    files: tuple[Path, ...]
    config: Mapping[str, Any] | None = None
    input_first: Container[str] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        return open_onnx, (self.path,)  # another process reads the graph itself

    @property
    def graph(self) -> Path:
        """The file itself."""
        return self.path

    def tensors(self) -> dict[str, TensorInfo]:
        """Return name -> shape and dtype, in the order of the names; matrices as (out_features, in_features)."""
        return dict(self.infos)

    def read(self, name: str) -> Tensor:
        """Return one tensor on the CPU, a matrix as (out_features, in_features)."""
        try:
            values = self.factors[name].matrix() if name in self.factors else self.others[name].numpy()
            if values.dtype.name == "bfloat16":  # numpy has no such type of its own
                return torch.from_numpy(np.array(values).view(np.int16)).view(torch.bfloat16)
            if values.dtype.name in ("int4", "uint4"):  # nor has torch
                values = values.astype(values.dtype.name.replace("4", "8"))
            return torch.from_numpy(np.array(values))
        except (OSError, ValueError, TypeError) as error:  # of types that torch has not, too
            raise SourceError(
                f"{self.path}: tensor {name!r} cannot be read ({error}); fetch the model again"
            ) from error

    def place(self, name: str) -> Path:
        """Return the file that holds a tensor."""
        del name
        return self.path

    def hashes(self) -> dict[str, str]:
        """Return file name -> SHA-256 of the model and of the files with its data."""
        return {file.relative_to(self.path.parent).as_posix(): sha256_of(file) for file in self.files}


def open_onnx(path: Path) -> OnnxSource:
    """Open an ONNX model. Raises SourceError as `open_graph`, and if there is no tensor in it."""
    model, files = _opened(path)
    try:
        inline_products(model)
    except SourceError as error:
        raise SourceError(f"{path}: {error}") from error
    by_root: dict[int, list[Product]] = {}
    for product in products(model):
        by_root.setdefault(id(product.root), []).append(product)
    infos: dict[str, TensorInfo] = {}
    factors: dict[str, Product] = {}
    others: dict[str, ir.TensorProtocol] = {}
    held: dict[str, ir.TensorProtocol] = {}
    # Matrices get their names first. Bodies of branches and loops may each have a tensor of one name.
    for value, tensor in sorted(_stored(model), key=lambda each: id(each[0]) not in by_root):
        inside = by_root.get(id(value), [])
        if not value.name or not (inside or _is_counted(tensor)):
            continue
        name = _free_name(value.name, tensor, held)
        if name in infos:
            continue
        held[name] = tensor
        role, use = role_of(value, inside)
        if inside:
            factors[name] = inside[0]
            infos[name] = TensorInfo(inside[0].shape, _dtype_of(inside[0]), role, use)
        else:
            others[name] = tensor
            infos[name] = TensorInfo(tuple(tensor.shape.numpy()), _DTYPES[tensor.dtype], role, use)
    if not infos:
        raise SourceError(f"{path}: holds no tensors; there is nothing to compress")
    return OnnxSource(path, dict(sorted(infos.items())), factors, others, (path, *sorted(files)))


def _is_counted(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype in _DTYPES and (tensor.dtype.is_floating_point() or tensor.size > 1)


def _free_name(name: str, tensor: ir.TensorProtocol, held: Mapping[str, ir.TensorProtocol]) -> str:
    """Return a name that no other values have; equal values keep one name."""
    return free_name(name, lambda each: each in held and not _are_equal(held[each], tensor))


def _are_equal(first: ir.TensorProtocol, second: ir.TensorProtocol) -> bool:
    alike = first.dtype == second.dtype and first.shape.numpy() == second.shape.numpy()
    return first is second or (alike and first.tobytes() == second.tobytes())


def open_graph(path: Path) -> ir.Model:
    """Read an ONNX file; data beside it stays in its files and is mapped, as if it were part of the model.

    Raises SourceError if it is missing, damaged, or keeps data outside its folder.
    """
    return _opened(path)[0]


def _require_sound(path: Path, model: ir.Model) -> None:
    """Raise SourceError for a graph that is no ONNX: names that are no text, products without a factor."""
    for graph in model.graphs():
        values = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
        for node in graph:
            values += [value for value in (*node.inputs, *node.outputs) if value is not None]
            is_named = all(isinstance(each, str) for each in (node.op_type, node.domain, node.name or ""))
            is_product = node.op_type in ("MatMul", "Gemm", "Conv") and node.domain in ("", "ai.onnx")
            if not is_named or not node.op_type or (is_product and len(node.inputs) < 2):
                raise SourceError(f"{path}: has a node {node.op_type!r} that is none of ONNX; export the model again")
        if not all(isinstance(value.name or "", str) for value in values):
            raise SourceError(f"{path}: has a value whose name is no text; export the model again")


def _opened(path: Path) -> tuple[ir.Model, set[Path]]:
    """Return the model and the files beside it that hold data."""
    if not path.is_file() and not path.is_dir():
        beside = [p.name for p in path.parent.glob("*.onnx")] if path.parent.is_dir() else []
        raise SourceError(f"{path}: no such ONNX file{near_misses(path.name, beside)}")
    what = told_apart(path)
    if what is not None:
        raise SourceError(f"{path}: {what}")
    try:
        with quiet():
            model = ir.load(path)
    except Exception as error:  # protobuf and onnx_ir raise many types for damaged files
        raise SourceError(f"{path}: is not a readable ONNX model ({first_line(error)}); export it again") from error
    _require_sound(path, model)
    folder = path.parent.resolve()
    for name, tensor in all_tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            place = (folder / tensor.location).resolve()
            is_linked_alike = path.is_symlink() and place.parent == path.resolve().parent  # the cache of Hugging Face
            if not (place.is_relative_to(folder) or is_linked_alike):
                raise SourceError(f"{path}: keeps {name} at {tensor.location!r}, outside its folder; not followed")
            if not place.is_file():
                raise SourceError(f"{path}: keeps {name} in {tensor.location!r}, which is missing; fetch it beside it")
            if (tensor.offset or 0) + max(tensor.length or 0, tensor.nbytes) > place.stat().st_size:
                raise SourceError(
                    f"{path}: {name} reaches beyond the end of {tensor.location!r}; fetch that file again"
                )
        else:
            try:
                tensor.numpy()
            except Exception as error:  # onnx_ir asserts that values stand in the field of their dtype
                raise SourceError(
                    f"{path}: {name or 'a tensor'} is damaged ({first_line(error)}); export it again"
                ) from error
    missing = next(_undefined(model), None)
    if missing is not None:
        raise SourceError(
            f"{path}: reads {missing!r}, which it does not define, unless as a sparse tensor, which is not read; "
            "export it again with dense tensors"
        )
    hidden = next(_hidden(model.graph, frozenset()), None)
    if hidden is not None:
        raise SourceError(
            f"{path}: a branch or loop has a tensor {hidden!r} of its own where one of that name is known already, "
            "which ONNX forbids and programs read differently; give it another name"
        )
    if model.ir_version <= _INITIALIZERS_ARE_INPUTS:
        RemoveInitializersFromInputsPass()(model)
    return model, _map_data(model)


def _map_data(model: ir.Model) -> set[Path]:
    """Put mapped arrays in the place of references to files, which hold for one folder only; return the files."""
    files: set[Path] = set()

    def mapped(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
        files.add(Path(tensor.path))
        return ir.Tensor(tensor.numpy(), dtype=tensor.dtype, shape=tensor.shape, name=tensor.name)

    for value in _initializers(model):
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value = mapped(value.const_value)
    for node in _all_nodes(model):
        for name, attribute in list(node.attributes.items()):
            if attribute.type == ir.AttributeType.TENSOR and isinstance(attribute.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, mapped(attribute.value))
    return files


def _dtype_of(product: Product) -> str:
    dtype = _DTYPES.get(product.tensor.dtype, str(product.tensor.dtype))
    return _QUANTIZED.get(product.tensor.dtype.bitwidth, dtype) if product.is_quantized else dtype


def _all_nodes(model: ir.Model) -> list[ir.Node]:
    return [*model.graph.all_nodes(), *(node for each in model.functions.values() for node in each.all_nodes())]


def _initializers(model: ir.Model) -> Iterator[ir.Value]:
    for graph in _graphs(model):
        yield from graph.initializers.values()


def _graphs(model: ir.Model) -> list[ir.Graph]:
    """Return every graph, also those without a node."""
    inner = (graph for function in model.functions.values() for graph in function.subgraphs())
    return list({id(graph): graph for graph in (*model.graphs(), *inner)}.values())


def _hidden(graph: ir.Graph, outer: frozenset[str]) -> Iterator[str]:
    """Yield the initializers of subgraphs that hide a value of the same name. ONNX Runtime takes the hidden one."""
    values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
    names = outer | {value.name for value in values if value.name}
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) and attribute.value is not None:
                inner = [attribute.value] if attribute.type is ir.AttributeType.GRAPH else attribute.value
                for each in inner:
                    yield from (name for name in each.initializers if name in names)
                    yield from _hidden(each, names)


def _undefined(model: ir.Model) -> Iterator[str]:
    """Yield the names of values that are read and come from nowhere."""
    for node in _all_nodes(model):
        for value in node.inputs:
            if value is None or not value.name or value.is_graph_input() or value.is_initializer():
                continue
            if value.producer() is None:
                yield value.name


def _stored(model: ir.Model) -> Iterator[tuple[ir.Value, ir.TensorProtocol]]:
    """Yield every initializer, and what every Constant node makes, with its tensor."""
    constants = (node.outputs[0] for node in _all_nodes(model) if node.op_type == "Constant")
    for value in (*_initializers(model), *constants):
        tensor = stored_tensor(value)
        if tensor is not None:
            yield value, tensor


def all_tensors(model: ir.Model) -> Iterator[tuple[str, ir.TensorProtocol]]:
    """Yield name and tensor of every initializer and every tensor attribute; Constants by their output's name."""
    for value in _initializers(model):
        if value.const_value is not None:
            yield value.name or "", value.const_value
    for node in _all_nodes(model):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:
                yield (node.outputs[0].name or "") if node.op_type == "Constant" else "", attribute.as_tensor()
