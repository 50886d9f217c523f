"""What the tests of layers share: inputs, the `nn.Linear` that a layer stands for, and how near to it float32 comes."""

from __future__ import annotations

import torch
from definition import as_arrays, dense_by_definition
from torch import Tensor, nn

from spm_compress.layers import SPMLinear

# One forward in float32 through ten stages.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def as_linear(layer: SPMLinear) -> nn.Linear:
    """The nn.Linear of the same map, its matrix multiplied out by definition."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None).to(layer.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(dense_by_definition(layer.structure, as_arrays(layer.spm().numbers))))
        if layer.bias is not None:
            linear.bias.copy_(layer.bias)
    return linear
