"""`SPMLinear` behaves as `nn.Linear` does."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from as_linear import layer_of, normal
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spm_compress import FitSettings, SPMLinear
from spm_compress.forms import Operator
from spm_compress.forms.spm import Gauge, build_spm

KINDS = [
    {},
    {"mixer": "rotation"},
    {"gauge": Gauge.CANONICAL},
    {"schedule": "random"},
    {"schedule": "butterfly", "stages": 5},
]
SHAPES = [(48, 48), (48, 100), (100, 48), (7, 7), (1, 5), (5, 1), (1, 1)]


@pytest.mark.parametrize("lead", [(), (0,), (4,), (2, 3), (2, 1, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_shapes_and_attributes_are_those_of_linear(lead: tuple[int, ...], bias: bool) -> None:
    ours, theirs = SPMLinear(48, 100, bias=bias), nn.Linear(48, 100, bias=bias)
    x = normal(*lead, 48)
    assert ours(x).shape == theirs(x).shape
    assert (ours.in_features, ours.out_features) == (48, 100)
    assert (ours.bias is None) == (theirs.bias is None)
    assert ours.weight.shape == theirs.weight.shape


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_both_paths_equal_the_dense_product(into: int, out: int, kind: dict[str, Any]) -> None:
    layer = layer_of(into, out, dtype=torch.float64, **kind)
    x = normal(3, into, dtype=torch.float64)
    expected = nn.functional.linear(x, layer.weight, layer.bias)
    for path in ("blocks", "stages"):
        layer.path = path
        torch.testing.assert_close(layer(x), expected, rtol=1e-10, atol=1e-10)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 12), st.sampled_from(["general", "rotation"]))
def test_the_two_paths_are_one_map(into: int, out: int, stages: int, mixer: str) -> None:
    layer = SPMLinear(into, out, stages=stages, mixer=mixer, block=8, dtype=torch.float64)
    x = normal(2, into, dtype=torch.float64)
    fused = layer(x)
    layer.path = "stages"
    torch.testing.assert_close(layer(x), fused, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("path", ["blocks", "stages"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("into", "out"), [pytest.param(6, 6, marks=pytest.mark.slow), (5, 9), (9, 4)])
def test_gradients(into: int, out: int, kind: dict[str, Any], path: str) -> None:
    layer = layer_of(into, out, block=4, dtype=torch.float64, path=path, **kind)
    names = [name for name, _ in layer.named_parameters()]
    x = normal(2, into, dtype=torch.float64).requires_grad_()

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    assert torch.autograd.gradcheck(call, (x, *layer.parameters()))


@pytest.mark.parametrize("path", ["blocks", "stages"])
def test_a_fused_layer_is_the_same_map_with_the_same_gradients(path: str) -> None:
    layer = SPMLinear(20, 36, dtype=torch.float64, path=path)
    x = normal(3, 20, dtype=torch.float64)
    (layer(x).square().sum() + layer(x + 1).sum()).backward()
    expected = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    fused = layer.fused()
    torch.testing.assert_close(fused(x), layer(x), rtol=1e-12, atol=1e-12)
    (fused(x).square().sum() + fused(x + 1).sum()).backward()
    for parameter, grad in zip(layer.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("path", ["blocks", "stages"])
def test_autocast_and_bfloat16_give_the_dtypes_of_linear(path: str) -> None:
    ours, theirs = SPMLinear(48, 64, path=path), nn.Linear(48, 64)
    x = normal(5, 48)
    exact = ours(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(x).dtype == theirs(x).dtype == torch.bfloat16
        # bfloat16 keeps 8 bits, a relative 0.4 %, over ten stages
        assert (ours(x).float() - exact).norm() < 0.05 * exact.norm()
    half = copy.deepcopy(ours).bfloat16()
    assert half(x.bfloat16()).dtype == torch.bfloat16
    assert (half(x.bfloat16()).float() - exact).norm() < 0.05 * exact.norm()


def test_state_dict_copies_and_files_keep_the_map() -> None:
    layer, x = SPMLinear(48, 100, schedule="random"), normal(3, 48)
    expected = layer(x)
    assert all(tensor.is_floating_point() for tensor in layer.state_dict().values())  # no index tables
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = SPMLinear(48, 100, schedule="random")
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), expected)
    assert torch.equal(copy.deepcopy(layer)(x), expected)


def test_it_is_exportable_with_a_dynamic_batch() -> None:
    layer = SPMLinear(48, 100).eval()
    program = torch.export.export(layer, (normal(3, 48),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = normal(9, 48)
    torch.testing.assert_close(program.module()(x), layer(x))


def test_it_trains_from_scratch() -> None:
    torch.manual_seed(0)
    layer, target = SPMLinear(32, 32), normal(32, 32) / 6
    adam = torch.optim.Adam(layer.parameters(), lr=0.02)
    x = normal(256, 32)
    losses = []
    for _ in range(150):
        loss = (layer(x) - x @ target).square().mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("mixer", ["general", "rotation"])
@pytest.mark.parametrize(("into", "out"), [(384, 384), (384, 1536), (1536, 384)])
def test_a_fresh_layer_has_the_variance_of_a_fresh_linear(into: int, out: int, mixer: str) -> None:
    torch.manual_seed(0)
    x = normal(200, into)
    with torch.no_grad():
        ratio = float(SPMLinear(into, out, mixer=mixer)(x).std() / nn.Linear(into, out)(x).std())
    assert 0.9 < ratio < 1.1


def test_fresh_numbers_come_from_torchs_generator() -> None:
    torch.manual_seed(3)
    first = SPMLinear(16, 16).weight
    torch.manual_seed(3)
    assert torch.equal(SPMLinear(16, 16).weight, first)


def test_from_linear_recovers_a_linear_that_is_such_a_chain() -> None:
    form = build_spm(64, 64, stages=6)
    generator = torch.Generator().manual_seed(0)
    arrays = {name: torch.randn(shape, generator=generator) for name, shape in form.shapes.items()}
    linear = nn.Linear(64, 64).double()
    linear.weight.data = Operator(form, arrays).to_dense().double()
    layer = SPMLinear.from_linear(linear, settings=FitSettings(stages=6))
    x = normal(5, 64, dtype=torch.float64)
    assert layer(x).dtype == torch.float64
    assert (layer(x) - linear(x)).norm() < 1e-5 * linear(x).norm()


def test_attention_reads_its_weight() -> None:
    attention = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    attention.out_proj = SPMLinear(32, 32)
    x = normal(2, 5, 32)
    dense = copy.deepcopy(attention)
    dense.out_proj = nn.Linear(32, 32)
    dense.out_proj.weight.data, dense.out_proj.bias.data = attention.out_proj.weight, attention.out_proj.bias.data
    torch.testing.assert_close(attention(x, x, x)[0], dense(x, x, x)[0])


def test_the_fast_path_of_a_transformer_layer_is_the_same_map() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    layer.linear1, layer.linear2 = SPMLinear(32, 64), SPMLinear(64, 32)
    x = normal(2, 5, 32)
    slow = layer.train()(x)
    with torch.no_grad():
        torch.testing.assert_close(layer.eval()(x), slow, rtol=1e-4, atol=1e-5)
