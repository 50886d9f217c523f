"""Monarch matrices against an oracle of loops, the optimum of their projection, and their way through the program."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made import fitted_layer, gaussian, mlp
from safetensors.torch import save_file
from torch import Tensor

from spm_compress import CompressSettings, FitSettings, export_onnx, fit_matrices, fit_model, open_source
from spm_compress.compress import parse_override
from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.fitting.objective import regularized
from spm_compress.forms import Operator
from spm_compress.forms.form import numbers_of
from spm_compress.forms.lowering import Blocks, Layout
from spm_compress.forms.monarch import Monarch
from spm_compress.forms.spm import Mixer

ALONE = FitSettings(stages=8, forms=("monarch",))


def by_loops(form: Monarch, arrays: Mapping[str, Tensor], x: np.ndarray) -> np.ndarray:
    """One feature after the other, as the definition in the module's docstring says."""
    left, right = (arrays[name].double().numpy() for name in ("left", "right"))
    p = math.ceil(form.out_features / form.left_blocks)
    q = math.ceil(form.in_features / form.right_blocks)
    y = np.zeros(form.out_features)
    for output in range(form.out_features):
        for feature in range(form.in_features):
            block, place = divmod(feature, q)
            target, row = divmod(output, p)
            y[output] += left[target, row, block] * right[block, target, place] * x[feature]
    return y


def tails(weight: np.ndarray, p: int, q: int) -> float:
    """What the best rank one of every tile leaves of the squared norm."""
    left = 0.0
    for i in range(0, weight.shape[0], p):
        for j in range(0, weight.shape[1], q):
            left += float((np.linalg.svd(weight[i : i + p, j : j + q], compute_uv=False)[1:] ** 2).sum())
    return left


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 14), st.integers(1, 14), st.data())
def test_a_monarch_matrix_is_what_its_definition_says(out: int, into: int, data: st.DataObject) -> None:
    form = Monarch(into, out, data.draw(st.integers(1, into)), data.draw(st.integers(1, out)))
    arrays = {name: gaussian(*shape, seed=i).double() for i, (name, shape) in enumerate(form.shapes.items())}
    x = gaussian(into, seed=7).double()
    expected = by_loops(form, arrays, x.numpy())
    np.testing.assert_allclose(form.apply(arrays, x[:, None])[:, 0].numpy(), expected, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(Operator(form, arrays).to_dense().numpy() @ x.numpy(), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("out", "into"), [(24, 24), (48, 20), (20, 48), (31, 23)])
def test_the_projection_is_the_optimum_and_takes_no_steps(out: int, into: int) -> None:
    weight = gaussian(out, into)
    (result,) = fit_matrices(weight[None], ALONE)
    form = result.operator.form
    assert isinstance(form, Monarch)
    best = math.sqrt(tails(weight.double().numpy(), *form.tile)) / float(weight.double().norm())
    assert result.error == pytest.approx(best, rel=1e-5)
    assert (result.steps, result.start) == (0, "projection")


@pytest.mark.parametrize(("out", "into"), [(24, 24), (31, 23)])
def test_a_monarch_matrix_is_recovered_to_rounding(out: int, into: int) -> None:
    (form,) = Monarch.candidates(ALONE, out, into)
    planted = Operator(form, {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(form.shapes.items())})
    (result,) = fit_matrices(planted.to_dense()[None], ALONE)
    assert result.error < 1e-6


def test_the_smallest_tiles_that_the_numbers_allow_are_taken() -> None:
    for stages in (4, 8, 20):
        asked = FitSettings(stages=stages, forms=("monarch",))
        (form,) = Monarch.candidates(asked, 96, 64)
        most = asked.numbers(96, 64)
        smaller = Monarch(64, 96, math.ceil(64 / (form.tile[1] - 1)), math.ceil(96 / (form.tile[0] - 1)))
        assert numbers_of(form) <= most < numbers_of(smaller)
    assert not Monarch.candidates(FitSettings(stages=1, mixer=Mixer.ROTATION), 64, 64)  # less than a rank one


def test_weighted_it_goes_down_from_the_projection() -> None:
    weight, inputs = gaussian(48, 64), gaussian(200, 64, seed=1) * torch.logspace(0, -2, 64)
    covariance = regularized(inputs.T @ inputs / 200, 200)
    start, end = (
        fit_matrices(weight[None], replace(ALONE, steps=steps), covariances=covariance[None])[0] for steps in (0, 200)
    )
    assert start.output_error is not None and end.output_error is not None
    assert end.output_error < 0.95 * start.output_error  # measured: 0.80 of it


@pytest.mark.parametrize("layout", Layout)
def test_onnx_is_two_batched_products(layout: Layout) -> None:
    (result,) = fit_matrices(gaussian(1, 32, 32), ALONE)
    model = layer_model(fitted_layer(result.operator), Blocks(layout))
    products = [node for function in model.functions.values() for node in function if node.op_type == "MatMul"]
    assert len(products) == 2


def test_a_layer_of_a_file_becomes_one_beside_others_and_is_exported(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(mlp(64, 96, 64).state_dict(), path)
    wanted = CompressSettings(
        FitSettings(stages=6, steps=10, block=8), overrides=(parse_override("0.weight:form=monarch"),)
    )
    artifact = fit_model(open_source(path), wanted, beside=tmp_path)
    assert [layer.form.kind for layer in artifact.layers] == ["monarch", "spm"]
    exported = export_onnx(artifact, tmp_path / "out.onnx", source=open_source(path))
    assert max(agreement.error for agreement in exported.agreements) < 1e-5


def test_a_plan_takes_it_where_it_is_the_better_form(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    fit = FitSettings(steps=20, block=8, forms=("spm", "monarch"))
    (planted,) = Monarch.candidates(replace(fit, stages=12), 64, 64)  # one of the sizes that a plan tries
    arrays = {name: gaussian(*shape, seed=i) for i, (name, shape) in enumerate(planted.shapes.items())}
    save_file({"a.weight": Operator(planted, arrays).to_dense()}, path)
    artifact = fit_model(open_source(path), CompressSettings(fit, max_error=0.01), beside=tmp_path)
    (layer,) = artifact.layers
    assert layer.form == planted
    assert layer.error < 1e-6
