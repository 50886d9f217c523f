"""What every registered form keeps to, without being named here: a new one is tried as soon as it is registered."""

from __future__ import annotations

import functools
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import gaussian
from safetensors.torch import load_file
from torch import Tensor, nn

from spm_compress.checkpoint import Artifact, FittedLayer, read_artifact, write_artifact
from spm_compress.codecs import FLOAT32, Codec, parse_bits
from spm_compress.errors import FitError, UsageError
from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.export.verification import session
from spm_compress.forms import FitSettings, Form, Operator, StoredOperator, fit_matrices, forms, relative_error
from spm_compress.forms.form import form_text, numbers_of, stored_bytes
from spm_compress.forms.lowering import lowerings
from spm_compress.forms.registry import read_form
from spm_compress.layers import FormLinear

KINDS = list(forms())
# What may be asked for of the numbers of a form.
BITS = ["32", "16", "8", "5", "4", "3", "2", "1.6", "1"]
SHAPES = [(24, 24), (16, 40), (40, 16), (7, 7), (33, 20), (20, 33), (1, 9), (9, 1)]
# float64 through some ten products of Gaussian numbers
EXACT = 1e-9


def settings_of(kind: str, stages: int = 6, seed: int = 0) -> FitSettings:
    return FitSettings(stages=stages, block=8, steps=20, seed=seed, forms=(kind,))


def takes(kind: str, codec: Codec) -> bool:
    """Whether one may ask for this codec of a form; the angles of stages take four bits or more."""
    try:
        FitSettings(forms=(kind,), store=codec)
    except UsageError:
        return False
    return True


def form_of(kind: str, out: int, into: int, stages: int = 6) -> Form:
    """The plainest form of a kind for a shape; narrow shapes need more room for the smallest one."""
    found = [forms()[kind].candidates(settings_of(kind, size), out, into) for size in (stages, 16, 48)]
    return next(each[0] for each in found if each)


def drawn(form: Form, seed: int = 0, dtype: torch.dtype = torch.float64) -> Operator:
    generator = torch.Generator().manual_seed(seed)
    arrays = {
        name: torch.randn(shape, generator=generator, dtype=dtype) / math.sqrt(max(1, shape[-1]))
        for name, shape in form.shapes.items()
    }
    return Operator(form, arrays)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / max(float(expected.norm()), 1e-300))


def layer_of(stored: StoredOperator) -> FittedLayer:
    form = stored.form
    shape = (form.out_features, form.in_features)
    return FittedLayer(("w",), shape, "F32", "0" * 64, 0.5, 0.5, 1, 0, "random", stored)


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12), st.integers(0, 3))
def test_apply_is_the_product_with_the_dense_matrix(kind: str, out: int, into: int, stages: int, seed: int) -> None:
    operator = drawn(form_of(kind, out, into, stages), seed)
    x = gaussian(into, 5, seed=seed).double()
    dense = operator.to_dense()
    assert dense.shape == (out, into)
    assert relative(operator.form.apply(operator.arrays, x), dense @ x) < EXACT
    assert relative(operator.matmul(x), dense @ x) < EXACT


@settings(deadline=None, max_examples=60)
@given(st.sampled_from(KINDS), st.integers(1, 40), st.integers(1, 40), st.integers(1, 12))
def test_the_transposed_map_has_the_transposed_matrix(kind: str, out: int, into: int, stages: int) -> None:
    operator = drawn(form_of(kind, out, into, stages))
    back = operator.transposed()
    assert back.form == operator.form.transposed()
    assert {name: tuple(array.shape) for name, array in back.arrays.items()} == dict(back.form.shapes)
    assert relative(back.to_dense(), operator.to_dense().T) < EXACT
    assert relative(back.form.apply(back.arrays, torch.eye(out, dtype=torch.float64)), operator.to_dense().T) < EXACT


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_a_batch_are_maps_side_by_side(kind: str) -> None:
    form = form_of(kind, 24, 16)
    alone = [drawn(form, seed) for seed in range(3)]
    batch = {name: torch.stack([each.arrays[name] for each in alone]) for name in form.shapes}
    factor = torch.tensor([-2.0, 0.25, 3.0], dtype=torch.float64)
    runner = form.runner()
    dense = runner.dense(runner.prepared(batch))
    scaled = runner.dense(runner.prepared(form.scaled(batch, factor)))
    for i, each in enumerate(alone):
        assert relative(dense[i], each.to_dense()) < EXACT
        assert relative(scaled[i], factor[i] * each.to_dense()) < 1e-6  # a share of the factor may be in float32


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(("out", "into"), [(24, 24), (33, 20), (16, 40)])
def test_counts_are_what_is_stored_and_a_manifest_brings_it_back(
    kind: str, bits: str, out: int, into: int, tmp_path: Path
) -> None:
    codec = parse_bits(bits)
    if not takes(kind, codec):
        return
    (result,) = fit_matrices(gaussian(1, out, into), settings_of(kind, 8))
    stored = StoredOperator.of(result.operator, codec)
    layer = layer_of(stored)
    path, again = tmp_path / "a.spm.safetensors", tmp_path / "b.spm.safetensors"
    write_artifact(Artifact({"path": "m", "files": {}}, {}, {}, (layer,), (), {}), path)
    size = sum(tensor.nbytes for tensor in load_file(path).values())
    assert size == layer.stored_bytes == stored.nbytes == stored_bytes(result.operator.form, codec)
    found = read_artifact(path)
    write_artifact(found, again)
    assert again.read_bytes() == path.read_bytes()
    (back,) = found.layers
    assert back.form == stored.form and back.stored.codecs == stored.codecs
    assert all(torch.equal(back.operator.arrays[name], array) for name, array in layer.operator.arrays.items())


@pytest.mark.parametrize("kind", KINDS)
def test_a_form_is_its_json(kind: str) -> None:
    for out, into in SHAPES:
        form = form_of(kind, out, into)
        for each in (form, form.stored(FLOAT32)):
            assert read_form({"kind": kind, **each.to_json()}, each.tables) == each
            assert form_text(kind, each.summary).startswith(kind)
            assert each.described()
            assert each.multiply_adds > 0


# Every shape, and every codec at an even shape and at an odd one; together they are 2,000 sessions.
SOME = {shape: BITS if shape in ((24, 24), (20, 33)) else ["32", "5"] for shape in SHAPES}


@pytest.mark.parametrize(
    "asked",
    [pytest.param(SOME, id="some"), pytest.param(dict.fromkeys(SHAPES, BITS), id="all", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("lowering", lowerings(), ids=lambda each: each.name)
@pytest.mark.parametrize("kind", KINDS)
def test_onnx_is_the_torch_operator(kind: str, lowering: object, asked: dict[tuple[int, int], list[str]]) -> None:
    for (out, into), bits in asked.items():
        operator = drawn(form_of(kind, out, into), dtype=torch.float32)
        for codec in filter(functools.partial(takes, kind), map(parse_bits, bits)):
            try:
                stored = StoredOperator.of(operator, codec)
            except FitError:  # random numbers leave the range of few bits
                continue
            model = layer_model(layer_of(stored), lowering)  # type: ignore[arg-type]
            runtime = session(ir.serde.serialize_model(model).SerializeToString())
            matrix = stored.decoded().to(torch.float64).to_dense()
            for batch in (1, 3, 512):
                x = gaussian(batch, into, seed=batch)
                (found,) = runtime.run(None, {"x": x.numpy()})
                assert relative(torch.from_numpy(found), x.double() @ matrix.T) < 1e-5, (out, into, batch, codec)
            # and an error of a thousandth in the matrix would have shown
            assert relative(torch.from_numpy(found), 1.001 * x.double() @ matrix.T) > 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_map(kind: str) -> None:
    form = form_of(kind, 6, 10)
    operator = drawn(form)
    names = list(operator.arrays)
    inputs = [operator.arrays[name].requires_grad_() for name in names]
    x = gaussian(10, 3).double().requires_grad_()
    runner = form.runner()

    def applied(x: Tensor, *arrays: Tensor) -> Tensor:
        return form.apply(dict(zip(names, arrays, strict=True)), x)

    def run(x: Tensor, *arrays: Tensor) -> Tensor:
        return runner.apply(runner.prepared(dict(zip(names, arrays, strict=True))), x)

    assert torch.autograd.gradcheck(applied, (x, *inputs))
    assert torch.autograd.gradcheck(run, (x, *inputs))


TARGETS = {
    "zero": torch.zeros(20, 12),
    "constant": torch.full((12, 20), 3.0),
    "rank one": gaussian(20, 1) @ gaussian(1, 20, seed=1),
    "1xN": gaussian(1, 30),
    "Nx1": gaussian(30, 1),
    "tiny": 1e-20 * gaussian(16, 16),
    "denormal": 1e-40 * gaussian(16, 16),
    "huge": 1e20 * gaussian(16, 16),
}


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("kind", KINDS)
def test_fits_of_odd_targets_are_finite_and_no_worse_than_nothing(kind: str, weighted: bool) -> None:
    for name, weight in TARGETS.items():
        out, into = weight.shape
        wanted = next(
            asked
            for asked in (replace(settings_of(kind), stages=size) for size in (6, 16, 48))
            if forms()[kind].candidates(asked, out, into)
        )
        factor = gaussian(into, into, seed=3)
        covariance = (factor @ factor.T / into + 0.1 * torch.eye(into))[None] if weighted else None
        (result,) = fit_matrices(weight[None], wanted, covariances=covariance)
        assert math.isfinite(result.error), name
        assert all(bool(array.isfinite().all()) for array in result.operator.arrays.values()), name
        assert result.error <= 1 + 1e-6 or weighted, name
        assert result.error == pytest.approx(relative_error(weight, result.operator), rel=1e-6, abs=1e-12)
        if weighted:
            assert result.output_error is not None and result.output_error <= 1 + 1e-5, name
        if name == "zero":
            assert result.error == 0
        numbers = wanted.numbers(out, into)
        # (near the end of float32 an SPM cannot gather its scales, and keeps the gauge that it was fitted in)
        assert kind == "dense" or numbers_of(result.operator.form.stored(FLOAT32)) <= numbers


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused(kind: str, value: float) -> None:
    weight = gaussian(1, 16, 16)
    weight[0, 3, 5] = value
    with pytest.raises(FitError, match="NaN or infinite"):
        fit_matrices(weight, settings_of(kind))


@pytest.mark.parametrize("kind", KINDS)
def test_a_weight_ends_the_same_whatever_is_in_its_batch(kind: str) -> None:
    weights = gaussian(3, 24, 16)
    together = fit_matrices(weights, settings_of(kind))
    for weight, result in zip(weights, together, strict=True):
        (alone,) = fit_matrices(weight[None], settings_of(kind))
        assert all(torch.equal(alone.operator.arrays[name], array) for name, array in result.operator.arrays.items())


@pytest.mark.parametrize("kind", KINDS)
def test_the_stored_and_the_trainable_form_are_the_same_map(kind: str) -> None:
    for out, into in SHAPES:
        operator = drawn(form_of(kind, out, into))
        stored = operator.stored()
        trained = stored.form.trainable(stored.arrays)
        for each in (stored, trained):
            assert {name: tuple(array.shape) for name, array in each.arrays.items()} == dict(each.form.shapes)
            assert relative(each.to_dense(), operator.to_dense()) < EXACT
        assert numbers_of(stored.form) <= numbers_of(operator.form)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_of_the_form_trains_and_is_a_drop_in(kind: str) -> None:
    torch.manual_seed(0)
    form = form_of(kind, 24, 16)
    layer = FormLinear(form)
    x = gaussian(4, 3, 16)
    assert relative(layer(x), x @ layer.weight.T + layer.bias) < 1e-5
    # as nn.Linear draws: rows of norm sqrt(1/3) on average
    assert float(layer.weight.detach().square().sum(1).mean()) == pytest.approx(1 / 3, rel=1e-3)
    literal = FormLinear.of(layer.operator(), layer.bias, path="stages")
    assert relative(literal(x), layer(x)) < 1e-5
    target = gaussian(4, 3, 24, seed=1)
    optimizer = torch.optim.Adam(layer.parameters(), 1e-2)
    before = nn.functional.mse_loss(layer(x), target).item()
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.mse_loss(layer(x), target).backward()
        optimizer.step()
    assert nn.functional.mse_loss(layer(x), target).item() < 0.9 * before
    other = FormLinear(form)
    other.load_state_dict(layer.state_dict())
    assert np.array_equal(other(x).detach().numpy(), layer(x).detach().numpy())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(24, 24), (16, 40), (40, 16), (20, 33)])
def test_a_layer_is_drawn_in_bfloat16_and_takes_no_rows(kind: str, shape: tuple[int, int]) -> None:
    layer = FormLinear(form_of(kind, *shape), dtype=torch.bfloat16)
    assert all(bool(parameter.isfinite().all()) for parameter in layer.parameters())
    for path in ("blocks", "stages"):
        layer.path = path
        for lead in ((0,), (2, 0), (0, 3)):
            assert layer(torch.zeros(*lead, shape[1], dtype=torch.bfloat16)).shape == (*lead, shape[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_assigned", [True, False])
def test_a_layer_without_memory_is_filled_later(kind: str, is_assigned: bool) -> None:
    form = form_of(kind, 20, 33, 16)
    kept, layer = FormLinear(form), FormLinear(form, device="meta")
    if not is_assigned:
        layer = layer.to_empty(device="cpu")
        for buffer in layer.buffers():
            assert int(buffer.min()) >= 0 and int(buffer.max()) <= 33  # positions, not what the memory held
    layer.load_state_dict(kept.state_dict(), assign=is_assigned)
    x = gaussian(5, 33)
    assert torch.equal(layer(x), kept(x))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", ["in_features", "out_features"])
@pytest.mark.parametrize("value", [24.0, "24", True, None, -1, 0])
def test_a_width_is_a_whole_number(kind: str, field: str, value: object) -> None:
    form = form_of(kind, 24, 24)
    entry = {"kind": kind, **form.to_json()}
    for each in entry.get("parts", [entry]):
        each[field] = value
    with pytest.raises((ValueError, TypeError)):
        read_form(entry, form.tables)
