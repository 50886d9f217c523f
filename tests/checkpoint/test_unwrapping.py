"""Modules without their wrappers, and with all their parameters made."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.parameter import is_lazy

from spm_compress.checkpoint.unwrapping import as_float32, initialized, require_float32, unwrapped
from spm_compress.errors import SourceError


def test_wrappers_are_taken_off_at_any_depth() -> None:
    inner = nn.Linear(4, 4)
    for wrapped in (
        torch.compile(inner),
        nn.DataParallel(inner),
        torch.optim.swa_utils.AveragedModel(nn.DataParallel(inner)),
    ):
        assert sorted(unwrapped(wrapped).state_dict()) == ["bias", "weight"]
    model = nn.Sequential(nn.DataParallel(inner), torch.compile(nn.Linear(4, 4)))
    assert sorted(unwrapped(model).state_dict()) == ["0.bias", "0.weight", "1.bias", "1.weight"]


def test_lazy_parameters_are_made_by_a_run() -> None:
    x = {"input": torch.ones(2, 4)}
    model = initialized(nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d()), x, "it")
    assert not any(is_lazy(each) for each in model.parameters())
    with pytest.raises(SourceError, match="lazy layers, which have no weights before their first run"):
        initialized(nn.Sequential(nn.LazyLinear(3)), None, "it")
    with pytest.raises(SourceError, match="does not run on its example inputs"):
        initialized(nn.Sequential(nn.LazyLinear(3), nn.Linear(4, 4)), x, "it")


def test_a_float64_module_that_stays_so_inside_is_refused() -> None:
    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.a(x + torch.ones(4, dtype=torch.float64))  # type: ignore[no-any-return]

    x = as_float32({"x": torch.ones(2, 4, dtype=torch.float64)})
    require_float32(nn.Linear(4, 4), {"input": x["x"]}, "it")
    with pytest.raises(SourceError, match="float64 module does not run in float32"):
        require_float32(Wide(), x, "it")
