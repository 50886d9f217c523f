"""Every lowering computes what the operator is defined to compute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from draw import random_spm
from hypothesis import given, settings
from hypothesis import strategies as st
from made import fitted_layer

from spm_compress.export.lowering import Lowering, lowerings
from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.operator import SPM, Mixer, Schedule, Structure, build_structure

# Float32 over at most 23 stages and sums of a few hundred terms; a 0.1 % error in one number is above it.
TOLERANCE = 1e-5
SHAPES = [(48, 48), (100, 48), (48, 100), (7, 7), (1, 5), (5, 1), (1, 1), (37, 33)]


def run(spm: SPM, lowering: Lowering, x: np.ndarray) -> np.ndarray:
    layer = fitted_layer(spm)
    model = ir.serde.serialize_model(layer_model(layer, lowering)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def relative_error(spm: SPM, lowering: Lowering, rows: int, expected_of: SPM | None = None) -> float:
    x = np.random.default_rng(0).standard_normal((rows, spm.shape[1])).astype(np.float32)
    dense = (expected_of or spm).to(torch.float64).to_dense().numpy()
    expected = x.astype(np.float64) @ dense.T
    return float(np.linalg.norm(run(spm, lowering, x) - expected) / np.linalg.norm(expected))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([3, 10, 23]),
    st.sampled_from(list(Mixer)),
    st.sampled_from(list(Schedule)),
    st.sampled_from(lowerings()),
    st.sampled_from([1, 5, 512]),
    st.sampled_from([0, 1]),
)
def test_a_lowering_equals_the_dense_product(
    shape: tuple[int, int], stages: int, mixer: Mixer, schedule: Schedule, lowering: Lowering, rows: int, rank: int
) -> None:
    structure = build_structure(shape[1], shape[0], stages=stages, mixer=mixer, schedule=schedule, block=8)
    structure = replace(structure, rank=rank)
    spm = random_spm(structure, dtype=torch.float32)
    # Random numbers cancel: what float32 can do at all is measured on the torch operator.
    exact = spm.to(torch.float64).to_dense()
    reachable = float((spm.to_dense().double() - exact).norm() / exact.norm())
    assert relative_error(spm, lowering, rows) < max(TOLERANCE, 10 * reachable)


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (5, 1)])
def test_a_low_rank_term_without_a_chain_is_lowered_too(shape: tuple[int, int], lowering: Lowering) -> None:
    spm = random_spm(Structure(Mixer.CANONICAL, shape[1], shape[0], (), 1), dtype=torch.float32)
    assert relative_error(spm, lowering, 5) < TOLERANCE


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
def test_the_tolerance_notices_one_number_off_by_a_thousandth(lowering: Lowering) -> None:
    spm = random_spm(build_structure(48, 48, stages=10, mixer=Mixer.ROTATION), dtype=torch.float32)
    wrong = SPM(spm.structure, [{name: array.clone() for name, array in named.items()} for named in spm.numbers])
    wrong.numbers[0]["diagonals"][0, 3] *= 1.01
    assert relative_error(spm, lowering, 5) < TOLERANCE < relative_error(wrong, lowering, 5, expected_of=spm)


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
def test_constants_are_tensors_which_every_onnx_runtime_can_infer_from(lowering: Lowering) -> None:
    # Up to 1.24, ONNX Runtime refuses a function whose Pad reads value_ints; folding 100 to 48 pads.
    function = lowering.function(build_structure(100, 48, stages=10), ir.DataType.FLOAT, 20, "narrowing")
    kinds = {name for node in function if node.op_type == "Constant" for name in node.attributes}
    assert "value_ints" not in kinds
