"""`SPMLinear` where networks keep an `nn.Linear`: its map, its gradients, its graph, inside cells and attention."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import pytest
import torch
from as_linear import ROUNDING, as_linear, layer_of, normal
from definition import relative
from draw import STAGES
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from spm_compress.errors import UsageError
from spm_compress.forms.spm import Gauge, Mixer, Schedule
from spm_compress.layers import SPMLinear

PATHS = ["blocks", "stages"]
SHAPES = [(6, 6), (4, 9), (9, 4)]

# -- what a layer is ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize("schedule", list(Schedule))
@pytest.mark.parametrize("path", PATHS)
def test_forward_and_weight_are_the_definition(mixer: Mixer, gauge: Gauge, schedule: Schedule, path: str) -> None:
    for into, out in [*SHAPES, (1, 5), (5, 1), (1, 1)]:
        layer = layer_of(into, out, mixer, gauge, schedule=schedule, block=4, path=path, dtype=torch.float64)
        linear = as_linear(layer)
        x = normal(2, 3, into, dtype=torch.float64)
        assert relative(layer.weight.detach(), linear.weight.detach()) < 1e-10
        assert relative(layer(x).detach(), linear(x).detach()) < 1e-10


def test_the_tolerance_notices_a_thousandth_in_one_number() -> None:
    layer = SPMLinear(6, 6, stages=4, dtype=torch.float64)
    linear = as_linear(layer)
    with torch.no_grad():
        layer.arrays["0_off_diagonal"][1, 2] *= 1.001
    x = normal(3, 6, dtype=torch.float64)
    assert relative(layer(x).detach(), linear(x).detach()) > 1e-7


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("lead", [(), (0,), (5,), (2, 3), (2, 0, 3)])
@pytest.mark.parametrize("path", PATHS)
def test_leading_dimensions_are_those_of_linear(lead: tuple[int, ...], bias: bool, path: str) -> None:
    layer = SPMLinear(6, 10, bias, stages=4, path=path)
    linear = as_linear(layer)
    x = normal(*lead, 6)
    assert layer(x).shape == linear(x).shape
    torch.testing.assert_close(layer(x), linear(x), **ROUNDING)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("shape", [(2, 3), (4, 3), (5,), (12,), ()])
def test_inputs_of_another_width_are_refused_as_by_linear(shape: tuple[int, ...], path: str) -> None:
    for layer in (nn.Linear(6, 10), SPMLinear(6, 10, stages=4, path=path)):
        with pytest.raises((RuntimeError, IndexError)):
            layer(normal(*shape))


def test_arguments_stand_where_linear_has_them() -> None:
    layer = SPMLinear(6, 10, False, "cpu", torch.float64)
    assert layer.bias is None
    assert {parameter.dtype for parameter in layer.parameters()} == {torch.float64}
    assert layer.weight.dtype == torch.float64
    with pytest.raises(UsageError):
        SPMLinear(6, 10, block=5)
    with pytest.raises(UsageError):
        SPMLinear(6, 10, stages=0)


def test_it_can_be_made_without_memory_as_linear_can() -> None:
    with torch.device("meta"):
        assert nn.Linear(6, 10).weight.is_meta
        assert all(parameter.is_meta for parameter in SPMLinear(6, 10).parameters())
    assert all(parameter.is_meta for parameter in SPMLinear(6, 10, device="meta").parameters())


def test_print_says_what_it_is() -> None:
    text = repr(SPMLinear(6, 10, bias=False, stages=7, mixer="rotation"))
    assert "in_features=6, out_features=10, bias=False, form=spm, stages=7, mixer=rotation" in text


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_autocast_gives_the_dtype_of_linear(dtype: torch.dtype, path: str) -> None:
    ours, theirs = SPMLinear(6, 10, dtype=dtype, path=path), nn.Linear(6, 10, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert ours(normal(3, 6, dtype=dtype)).dtype == theirs(normal(3, 6, dtype=dtype)).dtype
    assert ours(normal(3, 6, dtype=dtype)).dtype == dtype


@settings(deadline=None, max_examples=30)
@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(1, 9),
    st.sampled_from(STAGES),
    st.sampled_from(list(Schedule)),
    st.integers(0, 99),
)
def test_both_paths_have_the_same_values_and_gradients(
    into: int, out: int, stages: int, stage: tuple[Mixer, Gauge], schedule: Schedule, seed: int
) -> None:
    layer = layer_of(into, out, *stage, stages=stages, schedule=schedule, block=4, seed=seed, dtype=torch.float64)
    x = normal(3, into, dtype=torch.float64, seed=seed)
    toward = normal(3, out, dtype=torch.float64, seed=seed + 1)
    found = []
    for path in PATHS:
        layer.path = path
        layer.zero_grad()
        y = layer(x)
        (y * toward).sum().backward()
        found.append([y.detach(), *(p.grad for p in layer.parameters())])
    for blocks, staged in zip(*found, strict=True):
        # float64; canonical numbers up to 0.5 over nine stages grow by less than 100
        torch.testing.assert_close(blocks, staged, rtol=1e-9, atol=1e-10)


# -- fresh numbers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize(("into", "out"), [(256, 256), (64, 256), (256, 64)])
def test_a_fresh_map_has_the_norm_that_linear_has_on_average(into: int, out: int, mixer: Mixer, gauge: Gauge) -> None:
    torch.manual_seed(0)
    layer = layer_of(into, out, mixer, gauge)
    # U(-1/sqrt(in), 1/sqrt(in)) has the variance 1 / (3 in): rows of squared norm 1/3
    assert float(layer.weight.detach().square().sum() / out) == pytest.approx(1 / 3, rel=1e-4)
    assert float(layer.bias.detach().abs().max()) <= 1 / math.sqrt(into)
    x = normal(400, into)
    with torch.no_grad():
        ours, theirs = (module(x).var() for module in (layer, nn.Linear(into, out)))
    assert float(ours / theirs) == pytest.approx(1, abs=0.15)  # 400 rows of 64 or more: a few percent


def test_reset_draws_anew_and_repeats_with_the_seed() -> None:
    for mixer, gauge in STAGES:
        layer = layer_of(6, 10, mixer, gauge, stages=5)
        torch.manual_seed(1)
        layer.reset_parameters()
        first = {name: array.clone() for name, array in layer.state_dict().items()}
        layer.reset_parameters()
        assert not torch.equal(layer.weight, layer_of(6, 10, mixer, gauge, stages=5).weight)
        assert any(not torch.equal(first[name], array) for name, array in layer.state_dict().items())
        torch.manual_seed(1)
        layer.reset_parameters()
        assert all(torch.equal(first[name], array) for name, array in layer.state_dict().items())


# -- gradients ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("mixer", "gauge"), STAGES)
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_gradients_are_those_of_finite_differences(into: int, out: int, mixer: Mixer, gauge: Gauge, path: str) -> None:
    torch.manual_seed(0)
    layer = layer_of(into, out, mixer, gauge, stages=4, block=4, dtype=torch.float64, path=path)
    names = [name for name, _ in layer.named_parameters()]

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(names, parameters, strict=True)), (x,))

    x = normal(2, into, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(call, (x, *layer.parameters()), fast_mode=True)


def test_gradients_flow_through_weight() -> None:
    layer = SPMLinear(6, 10, stages=4, dtype=torch.float64)
    x = normal(3, 6, dtype=torch.float64)
    through = [layer(x), nn.functional.linear(x, layer.weight, layer.bias)]
    first, second = (torch.autograd.grad(y.square().sum(), list(layer.parameters())) for y in through)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


# -- graphs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(("into", "out"), SHAPES)
def test_export_takes_any_batch_and_equals_the_layer(into: int, out: int, path: str) -> None:
    layer = SPMLinear(into, out, stages=4, block=4, path=path).eval()
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(layer, (normal(3, into),), dynamic_shapes=(batch,)).module()
    for rows in (1, 2, 11):
        torch.testing.assert_close(program(normal(rows, into)), layer(normal(rows, into)), **ROUNDING)


# -- networks -----------------------------------------------------------------------------------------------------


def test_it_trains_on_what_it_can_hold() -> None:
    torch.manual_seed(0)
    target, layer = SPMLinear(16, 8, stages=4, block=4), SPMLinear(16, 8, stages=4, block=4)
    x = normal(128, 16)
    y = target(x).detach()
    adam = torch.optim.Adam(layer.parameters(), lr=0.03)
    losses = []
    for _ in range(80):
        adam.zero_grad()
        loss = (layer(x) - y).square().mean()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


class GRUCell(nn.Module):
    """A gated recurrent cell as papers write it, in two linear layers."""

    def __init__(self, inputs: int, hidden: int, linear: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.from_input, self.from_hidden = linear(inputs, 3 * hidden), linear(hidden, 3 * hidden)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        reset_x, update_x, new_x = self.from_input(x).chunk(3, -1)
        reset_h, update_h, new_h = self.from_hidden(h).chunk(3, -1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return (1 - update) * new + update * h


@pytest.mark.parametrize("path", PATHS)
def test_a_recurrent_cell_runs_and_trains_on_it(path: str) -> None:
    torch.manual_seed(0)
    ours = GRUCell(5, 6, lambda a, b: SPMLinear(a, b, stages=4, block=4, path=path))
    theirs = GRUCell(5, 6, nn.Linear)
    theirs.from_input, theirs.from_hidden = as_linear(ours.from_input), as_linear(ours.from_hidden)

    def last(cell: GRUCell, x: Tensor) -> Tensor:
        h = torch.zeros(x.shape[0], 6)
        for step in x.unbind(1):
            h = cell(step, h)
        return h

    x, y = normal(2, 4, 5).requires_grad_(), normal(2, 4, 5).requires_grad_()
    out, expected = last(ours, x), last(theirs, y)
    torch.testing.assert_close(out, expected, **ROUNDING)
    out.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(x.grad, y.grad, **ROUNDING)
    assert all(p.grad is not None and p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize("training", [True, False])
def test_attention_projects_out_through_it(training: bool) -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).train(training)
    attention.out_proj = SPMLinear(8, 8, stages=4)
    dense = copy.deepcopy(attention)
    dense.out_proj = as_linear(attention.out_proj)
    x = normal(2, 5, 8)
    for options in ({}, {"need_weights": False}):
        torch.testing.assert_close(attention(x, x, x, **options)[0], dense(x, x, x, **options)[0], **ROUNDING)
        with torch.no_grad():
            torch.testing.assert_close(attention(x, x, x, **options)[0], dense(x, x, x, **options)[0], **ROUNDING)
    attention(x, x, x)[0].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in attention.out_proj.parameters())


def test_the_fused_path_of_a_transformer_layer_is_taken_and_is_the_same_map(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    layer.linear1, layer.linear2 = SPMLinear(8, 12, stages=4), SPMLinear(12, 8, stages=4)
    layer.self_attn.out_proj = SPMLinear(8, 8, stages=4)
    x = normal(2, 5, 8)
    slow = layer.train()(x).detach()
    calls = []
    fused = torch._transformer_encoder_layer_fwd

    def counted(*arguments: object) -> Tensor:
        calls.append(arguments)
        return fused(*arguments)

    monkeypatch.setattr(torch, "_transformer_encoder_layer_fwd", counted)
    with torch.no_grad():
        fast = layer.eval()(x)
    assert len(calls) == 1
    torch.testing.assert_close(fast, slow, **ROUNDING)
