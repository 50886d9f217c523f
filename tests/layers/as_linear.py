"""What the tests of layers share: inputs, layers, the `nn.Linear` that one stands for, how near to it float32 comes."""

from __future__ import annotations

from typing import Any

import torch
from definition import as_arrays, dense_by_definition
from draw import laid_out
from torch import Tensor, nn

from spm_compress.forms.spm import Gauge, Mixer, Schedule
from spm_compress.layers import FormLinear, SPMLinear

# One forward in float32 through ten stages.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 7) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layer_of(
    into: int,
    out: int,
    mixer: Mixer | str = Mixer.GENERAL,
    gauge: Gauge = Gauge.FREE,
    *,
    stages: int = 10,
    schedule: Schedule | str = Schedule.GROUPED,
    block: int = 32,
    seed: int = 0,
    **options: Any,
) -> FormLinear:
    """A fresh layer; an `SPMLinear` has the free gauge, so that the canonical one is asked for by its form."""
    layout = {"stages": stages, "block": block, "seed": seed}
    if gauge is Gauge.FREE:
        return SPMLinear(into, out, mixer=mixer, schedule=schedule, **layout, **options)
    return FormLinear(laid_out(into, out, Mixer(mixer), gauge, schedule=Schedule(schedule), **layout), **options)


def as_linear(layer: FormLinear) -> nn.Linear:
    """The nn.Linear of the same map, its matrix multiplied out by definition."""
    linear = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None).to(layer.weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(dense_by_definition(layer.form, as_arrays(layer.operator().arrays))))
        if layer.bias is not None:
            linear.bias.copy_(layer.bias)
    return linear
