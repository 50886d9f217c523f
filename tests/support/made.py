"""What many tests are made of: a Gaussian matrix, a plain MLP, a fitted layer around an operator."""

from __future__ import annotations

import itertools
import json
import struct
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from spm_compress.checkpoint import FittedLayer
from spm_compress.codecs import FLOAT32, StoredArray
from spm_compress.forms import Operator, StoredOperator

__all__ = ["Attention", "fitted_layer", "gaussian", "layer_as_it_is", "mlp", "token_graph", "write_header"]


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def mlp(*widths: int, seed: int = 0) -> nn.Sequential:
    """Return linear layers with ReLU between them, 0, 2, 4, ..., of random numbers."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for into, out in itertools.pairwise(widths):
        layers += [nn.Linear(into, out), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).eval()


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.f = nn.MultiheadAttention(64, 4, batch_first=True), nn.Linear(64, 48)

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self.a(x, x, x, need_weights=False)[0])  # type: ignore[no-any-return]


def write_header(path: Path, entries: dict[str, object], data: bytes = b"") -> None:
    """Write a safetensors file whose header says anything."""
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def token_graph(model: nn.Module, path: Path) -> Path:
    """Export a module of token ids (batch, sequence), of any sizes, as one ONNX file; return its path."""
    torch.onnx.export(
        model.eval(),
        (torch.arange(6).reshape(2, 3),),
        path,
        dynamo=True,
        verbose=False,
        input_names=["ids"],
        dynamic_shapes=({0: "batch", 1: "sequence"},),
        external_data=False,
    )
    return path


def fitted_layer(operator: Operator, name: str = "layer.weight", sha256: str = "", error: float = 0.0) -> FittedLayer:
    """Return a layer as a fit of a weight with that digest would have left it."""
    return FittedLayer((name,), operator.shape, "F32", sha256, error, 0.0, 0, 0, "", StoredOperator.of(operator))


def layer_as_it_is(operator: Operator) -> FittedLayer:
    """As `fitted_layer`, stored in the gauge that the operator has, which a fit leaves only where it has to."""
    arrays = {name: StoredArray.of(FLOAT32, array) for name, array in operator.arrays.items()}
    return replace(fitted_layer(operator), stored=StoredOperator(operator.form, arrays))
