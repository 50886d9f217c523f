"""Which products of a graph are those of fitted weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.products import Product, inline_products, products
from spm_compress.errors import ExportError

__all__ = ["Digests", "Match", "digest_of", "matches", "none_found"]


@dataclass(frozen=True)
class Match:
    """A product whose matrix is that of a fitted layer, or its transpose."""

    product: Product
    layer: FittedLayer
    transposed: bool


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
    by_digest = {layer.sha256: layer for layer in layers}
    shapes = {shape for layer in layers for shape in (layer.shape, layer.shape[::-1])}
    for product in products(model):
        if product.shape not in shapes:
            continue
        for transposed in (False, True):
            layer = by_digest.get(digests.of_product(product, transposed=transposed))
            if layer is not None:
                yield Match(product, layer, transposed)
                break


def none_found(layers: Sequence[FittedLayer]) -> ExportError:
    """Return the error of a graph that has no product with any of the layers."""
    return ExportError(
        f"none of the {len(layers)} fitted weights is in the graph as a MatMul, Gemm or 1x1 Conv; "
        "is it the graph of the model that was fitted?"
    )


def digest_of(matrix: np.ndarray) -> str:
    """Return the SHA-256 of a float32 matrix in C order, as an artifact has it of every fitted weight."""
    return hashlib.sha256(np.ascontiguousarray(matrix).tobytes()).hexdigest()
