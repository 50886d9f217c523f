"""Which products of a graph are those of fitted weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.products import Product, inline_products, products, stored_tensor
from spm_compress.errors import ExportError
from spm_compress.forms.dense import Dense

__all__ = ["Digests", "Lookup", "Match", "digest_of", "lookups", "matches", "none_found"]


@dataclass(frozen=True)
class Match:
    """A product whose matrix is that of a fitted layer, or its transpose."""

    product: Product
    layer: FittedLayer
    transposed: bool


@dataclass(frozen=True)
class Lookup:
    """A Gather of rows from a stored tensor that is a fitted dense map."""

    node: ir.Node
    layer: FittedLayer

    @property
    def table(self) -> ir.Value:
        """What holds the tensor."""
        table = self.node.inputs[0]
        assert table is not None
        return table


class Digests:
    """Digests of the matrices of a graph, each computed once for it and all of its copies, which share its tensors."""

    def __init__(self) -> None:
        self._known: dict[tuple[object, ...], str] = {}
        self._held: list[ir.TensorProtocol] = []  # so that no other tensor gets the identity of one that is gone

    def of_product(self, product: Product, *, transposed: bool) -> str:
        """Return the digest of the product's E (out, in) as float32, or of its transpose."""
        constants = [ir.convenience.get_const_tensor(each) for step in product.steps for each in step.inputs if each]
        steps = tuple((step.op_type, tuple(map(str, step.attributes.values()))) for step in product.steps)
        tensors = [product.tensor, *(constant for constant in constants if constant is not None)]
        key = (*map(id, tensors), steps, product.is_transposed, transposed)
        if key not in self._known:
            matrix = product.matrix().astype(np.float32)
            self._remember(tensors, key, matrix.T if transposed else matrix)
        return self._known[key]

    def of_tensor(self, tensor: ir.TensorProtocol, *, transposed: bool) -> str:
        """Return the digest of a stored matrix as float32, or of its transpose."""
        key = (id(tensor), (), transposed, False)  # as that of a product which reads the tensor itself
        if key not in self._known:
            matrix = tensor.numpy().astype(np.float32)
            self._remember([tensor], key, matrix.T if transposed else matrix)
        return self._known[key]

    def _remember(self, tensors: Sequence[ir.TensorProtocol], key: tuple[object, ...], matrix: np.ndarray) -> None:
        self._held += tensors
        self._known[key] = digest_of(matrix)


def matches(model: ir.Model, layers: Sequence[FittedLayer], digests: Digests) -> Iterator[Match]:
    """Yield the products of a graph that are those of fitted layers; functions that hold one are inlined.

    digests: of the graph, or of one that it is a copy of.
    """
    inline_products(model)
    by_values = {(layer.sha256, layer.shape): layer for layer in layers}
    shapes = {shape for layer in layers for shape in (layer.shape, layer.shape[::-1])}
    for product in products(model):
        if product.shape not in shapes:
            continue
        for transposed in (False, True):
            shape = product.shape[::-1] if transposed else product.shape
            layer = by_values.get((digests.of_product(product, transposed=transposed), shape))
            if layer is not None:
                yield Match(product, layer, transposed)
                break


def lookups(model: ir.Model, layers: Sequence[FittedLayer], digests: Digests) -> Iterator[Lookup]:
    """Yield the nodes of a graph that look rows of fitted dense maps up."""
    by_values = {(layer.sha256, layer.shape): layer for layer in layers if isinstance(layer.form, Dense)}
    shapes = {shape for _, shape in by_values}
    for node in model.graph.all_nodes():
        table = node.inputs[0] if node.inputs else None
        if node.op_type != "Gather" or node.domain not in ("", "ai.onnx") or table is None:
            continue
        axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
        tensor = stored_tensor(table)
        if axis not in (0, -2) or tensor is None or not tensor.dtype.is_floating_point():
            continue
        shape = tensor.shape.numpy()
        if shape in shapes and (found := by_values.get((digests.of_tensor(tensor, transposed=False), shape))):
            yield Lookup(node, found)


def none_found(layers: Sequence[FittedLayer]) -> ExportError:
    """Return the error of a graph that has no product with any of the layers."""
    return ExportError(
        f"none of the {len(layers)} fitted weights is in the graph as a MatMul, Gemm, 1x1 Conv or lookup; "
        "is it the graph of the model that was fitted?"
    )


def digest_of(matrix: np.ndarray) -> str:
    """Return the SHA-256 of a float32 matrix in C order, as an artifact has it of every fitted weight."""
    return hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest()
