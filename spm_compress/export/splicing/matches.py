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

__all__ = ["Match", "digest_of", "matches", "none_found"]


@dataclass(frozen=True)
class Match:
    """A product whose matrix is that of a fitted layer, or its transpose."""

    product: Product
    layer: FittedLayer
    transposed: bool


def matches(model: ir.Model, layers: Sequence[FittedLayer]) -> Iterator[Match]:
    """Yield the products of a graph that are those of fitted layers; functions that hold one are inlined."""
    inline_products(model)
    by_digest = {layer.sha256: layer for layer in layers}
    shapes = {shape for layer in layers for shape in (layer.shape, layer.shape[::-1])}
    for product in products(model):
        if product.shape not in shapes:
            continue
        e = product.matrix().astype(np.float32)
        for transposed, matrix in ((False, e), (True, e.T)):
            layer = by_digest.get(digest_of(matrix))
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
