"""Every lowering computes what the operator is defined to compute."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from draw import STAGES, laid_out, random_operator
from hypothesis import given, settings
from hypothesis import strategies as st
from made import layer_as_it_is

from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.forms import Form, Operator, StoredOperator
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.lowering import Lowering, lowerings
from spm_compress.forms.onnx_function import write_functions
from spm_compress.forms.spm import Gauge, Mixer, Schedule, build_spm
from spm_compress.forms.sum import Sum

# Float32 over at most 23 stages and sums of a few hundred terms; a 0.1 % error in one number is above it.
TOLERANCE = 1e-5
SHAPES = [(48, 48), (100, 48), (48, 100), (7, 7), (1, 5), (5, 1), (1, 1), (37, 33)]


def run(operator: Operator, lowering: Lowering, x: np.ndarray) -> np.ndarray:
    layer = layer_as_it_is(operator)
    model = ir.serde.serialize_model(layer_model(layer, lowering)).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def relative_error(operator: Operator, lowering: Lowering, rows: int, expected_of: Operator | None = None) -> float:
    x = np.random.default_rng(0).standard_normal((rows, operator.shape[1])).astype(np.float32)
    dense = (expected_of or operator).to(torch.float64).to_dense().numpy()
    expected = x.astype(np.float64) @ dense.T
    return float(np.linalg.norm(run(operator, lowering, x) - expected) / np.linalg.norm(expected))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.sampled_from([3, 10, 23]),
    st.sampled_from(STAGES),
    st.sampled_from(list(Schedule)),
    st.sampled_from(lowerings()),
    st.sampled_from([1, 5, 512]),
    st.sampled_from([0, 1]),
)
def test_a_lowering_equals_the_dense_product(
    shape: tuple[int, int],
    stages: int,
    kind: tuple[Mixer, Gauge],
    schedule: Schedule,
    lowering: Lowering,
    rows: int,
    rank: int,
) -> None:
    form: Form = laid_out(shape[1], shape[0], *kind, stages=stages, schedule=schedule, block=8)
    if rank:
        form = Sum((form, LowRank(shape[1], shape[0], rank)))
    operator = random_operator(form, dtype=torch.float32)
    # Random numbers cancel: what float32 can do at all is measured on the torch operator.
    exact = operator.to(torch.float64).to_dense()
    reachable = float((operator.to_dense().double() - exact).norm() / exact.norm())
    assert relative_error(operator, lowering, rows) < max(TOLERANCE, 10 * reachable)


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("shape", [(24, 48), (48, 24), (5, 1)])
def test_a_low_rank_alone_is_lowered_too(shape: tuple[int, int], lowering: Lowering) -> None:
    operator = random_operator(LowRank(shape[1], shape[0], 1), dtype=torch.float32)
    assert relative_error(operator, lowering, 5) < TOLERANCE


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
def test_the_tolerance_notices_one_number_off_by_a_thousandth(lowering: Lowering) -> None:
    operator = random_operator(build_spm(48, 48, stages=10, mixer=Mixer.ROTATION), dtype=torch.float32)
    wrong = Operator(operator.form, {name: array.clone() for name, array in operator.arrays.items()})
    wrong.arrays["0.scales"][0, 3] *= 1.01
    assert relative_error(operator, lowering, 5) < TOLERANCE < relative_error(wrong, lowering, 5, expected_of=operator)


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
def test_constants_are_tensors_which_every_onnx_runtime_can_infer_from(lowering: Lowering) -> None:
    # Up to 1.24, ONNX Runtime refuses a function whose Pad reads value_ints; folding 100 to 48 pads.
    form = build_spm(100, 48, stages=10)
    written = write_functions(StoredOperator.of(random_operator(form)), lowering, ir.DataType.FLOAT, 20, "narrowing")
    nodes = [
        node for function in (written.constants, written.function, *written.needed) if function for node in function
    ]
    kinds = {name for node in nodes if node.op_type == "Constant" for name in node.attributes}
    assert "value_ints" not in kinds
