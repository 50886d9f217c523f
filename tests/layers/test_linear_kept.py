"""Layers kept in a file, copied, moved to another dtype, and made from an operator or an `nn.Linear`."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from as_linear import ROUNDING, layer_of, normal
from definition import dense_by_definition, dense_of, drawn_numbers, relative
from draw import STAGES, random_operator
from torch import nn

from spm_compress.codecs import FLOAT32
from spm_compress.errors import FitError
from spm_compress.forms import FitSettings, Form
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.spm import SPM, Gauge, Mixer, Schedule, build_spm
from spm_compress.forms.sum import Sum
from spm_compress.layers import FormLinear, SPMLinear


@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize("schedule", list(Schedule))
def test_state_dict_holds_the_stored_numbers_and_the_bias_alone(mixer: Mixer, gauge: Gauge, schedule: Schedule) -> None:
    layer = layer_of(6, 10, mixer, gauge, schedule=schedule)
    expected = {f"arrays.{name.replace('.', '_')}": shape for name, shape in layer.form.shapes.items()}
    assert {name: tuple(array.shape) for name, array in layer.state_dict().items()} == {**expected, "bias": (10,)}
    assert sum(p.numel() for p in layer.parameters()) == layer.operator().parameter_count + 10


@pytest.mark.parametrize(("into", "out"), [(6, 6), (4, 9), (9, 4)])
def test_state_dict_goes_through_a_file_to_the_other_path(tmp_path: Path, into: int, out: int) -> None:
    layer, x = SPMLinear(into, out, schedule="random", dtype=torch.float64), normal(3, into, dtype=torch.float64)
    torch.save(layer.state_dict(), tmp_path / "layer.pt")
    other = SPMLinear(into, out, schedule="random", dtype=torch.float64, path="stages")
    other.load_state_dict(torch.load(tmp_path / "layer.pt", weights_only=True))
    torch.testing.assert_close(other(x), layer(x), rtol=1e-10, atol=1e-10)


def test_state_dict_of_another_size_is_refused() -> None:
    layer = SPMLinear(6, 6, stages=4)
    for other in (SPMLinear(6, 6, stages=5), SPMLinear(6, 6, stages=4, mixer="rotation"), SPMLinear(6, 8, stages=4)):
        with pytest.raises(RuntimeError):
            layer.load_state_dict(other.state_dict())


def test_a_copy_shares_nothing() -> None:
    layer, x = SPMLinear(6, 10), normal(3, 6)
    other = copy.deepcopy(layer)
    expected = layer(x)
    assert torch.equal(other(x), expected)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(layer(x), expected)
    assert not other(x).any()


def test_dtype_moves_change_numbers_and_no_order() -> None:
    layer, x = SPMLinear(6, 10, schedule="random"), normal(3, 6)
    expected = layer(x)
    torch.testing.assert_close(layer.double()(x.double()).float(), expected, **ROUNDING)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    assert relative(half.detach().float(), expected.detach()) < 0.05  # 0.4 % a rounding over ten stages


FORM = build_spm(6, 10, stages=5, block=4)
FORMS = {
    "general": FORM,
    "canonical": FORM.stored(FLOAT32),
    "low_rank": LowRank(6, 10, 3),
    "sum": Sum((FORM.stored(FLOAT32), LowRank(6, 10, 2))),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_an_operator_is_copied_into_a_layer(form: Form) -> None:
    operator, bias = random_operator(form, dtype=torch.float32), normal(10)
    layer = FormLinear.of(operator, bias)
    assert isinstance(layer, SPMLinear) == isinstance(form, SPM)
    expected = dense_of(operator)
    assert relative(layer.weight.detach(), expected) < 1e-5
    x = normal(3, 6)
    for path in ("blocks", "stages"):
        layer.path = path
        assert relative(layer(x).detach(), x.double().numpy() @ expected.T + bias.double().numpy()) < 1e-5
    assert layer.form == operator.form
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
    assert relative(dense_of(operator), expected) == 0, "the layer holds copies"
    assert bias.any()
    assert FormLinear.of(operator).bias is None


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("is_corrected", [True, False])
def test_an_operator_stands_in_place_of_a_linear(form: Form, has_bias: bool, is_corrected: bool) -> None:
    operator, correction = random_operator(form, dtype=torch.float32), normal(10, seed=8)
    linear = nn.Linear(6, 10, bias=has_bias, dtype=torch.float64).eval()
    layer = FormLinear.in_place_of(linear, operator, correction if is_corrected else None)
    assert relative(layer.weight.detach(), dense_of(operator)) < 1e-5  # balanced in float32 where it was canonical
    assert layer.weight.dtype == torch.float64
    assert not layer.training
    expected = (linear.bias.detach() if has_bias else 0) + (correction.double() if is_corrected else 0)
    if has_bias or is_corrected:
        assert torch.equal(layer.bias.detach(), expected)
    else:
        assert layer.bias is None


@pytest.mark.parametrize("mixer", [Mixer.GENERAL, Mixer.ROTATION])
@pytest.mark.parametrize("bias", [True, False])
def test_from_linear_recovers_a_planted_map_with_bias_dtype_and_mode(mixer: Mixer, bias: bool) -> None:
    asked = FitSettings(stages=4, mixer=mixer)
    form = asked.spm(16, 16)
    linear = nn.Linear(16, 16, bias=bias, dtype=torch.float64).eval()
    with torch.no_grad():
        linear.weight.copy_(torch.from_numpy(dense_by_definition(form, drawn_numbers(form))))
    layer = SPMLinear.from_linear(linear, settings=asked)
    x = normal(5, 16, dtype=torch.float64)
    assert relative(layer(x).detach(), linear(x).detach()) < 1e-5  # fitted in float32
    assert layer(x).dtype == torch.float64
    assert not layer.training
    assert (layer.bias is None) is not bias
    if layer.bias is not None:
        assert torch.equal(layer.bias, linear.bias)
        assert layer.bias is not linear.bias
    assert all(p.requires_grad for p in layer.parameters())


@pytest.mark.parametrize(("into", "out"), [(12, 12), (6, 14), (14, 6)])
def test_from_linear_takes_any_shape_and_the_stages_asked_for(into: int, out: int) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(into, out)
    kept = linear.weight.detach().clone()
    layer = SPMLinear.from_linear(linear, settings=FitSettings(stages=9, steps=40))
    assert layer.form.summary["stages"] == 9
    assert layer.weight.shape == linear.weight.shape
    assert relative(layer.weight.detach(), kept) < 0.8  # measured 0.2 to 0.6
    assert torch.equal(linear.weight, kept)


def test_from_linear_refuses_a_weight_that_is_not_finite() -> None:
    linear = nn.Linear(4, 4)
    with torch.no_grad():
        linear.weight[0, 0] = math.nan
    with pytest.raises(FitError):
        SPMLinear.from_linear(linear)
