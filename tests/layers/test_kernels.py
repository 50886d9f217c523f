"""The GPU kernels beside the definition: compiled where there is a GPU, else in Triton's interpreter."""

import warnings

import pytest
import torch
from draw import random_operator, structures
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from spm_compress import FormLinear, SPMLinear
from spm_compress.forms.spm import Gauge
from spm_compress.forms.spm.plan import apply_stages
from spm_compress.layers import linear

pytest.importorskip("triton", reason="Triton is for Linux")
from spm_compress.layers import kernels

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """Layers take the kernels, wherever they are; remembers on which devices."""
    taken = []

    def found(plan, like):
        taken.append(like.device)
        return kernels.GroupKernels(plan.structure, like.device)

    monkeypatch.setattr(linear, "_kernels", found)
    return taken


@settings(deadline=None, max_examples=15)
@given(structures(), st.booleans(), st.integers(1, 140))
def test_kernels_agree_with_the_definition_and_its_gradients(structure, turned, rows):
    assume(kernels.GroupKernels.serve(structure))
    if turned and structure.gauge is Gauge.FREE:
        structure = structure.transposed()
    layer = FormLinear.of(random_operator(structure, dtype=torch.float32)).to(DEVICE)
    x = torch.randn(structure.in_features, rows, device=DEVICE).requires_grad_()
    arrays = layer.operator().arrays
    expected = apply_stages(structure, arrays, x)
    found = layer._runner.apply(kernels.GroupKernels(structure, DEVICE).maps(arrays), x, layer._tables())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.detach().abs().max()))
    weights = torch.randn(expected.shape, device=DEVICE)
    ours, theirs = (
        torch.autograd.grad((y * weights).sum(), [x, *layer.arrays.parameters()]) for y in (found, expected)
    )
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-4, atol=1e-5 * float(their.abs().max()))


def test_a_layer_takes_them_and_answers_as_before(as_on_a_gpu):
    layer = SPMLinear(48, 96, stages=9)
    x = torch.randn(2, 7, 48)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(linear, "_kernels", lambda plan, like: None)
        expected = layer(x)
    layer.to(DEVICE)
    torch.testing.assert_close(layer(x.to(DEVICE)).cpu(), expected)
    assert as_on_a_gpu
    torch.testing.assert_close(layer.fused()(x.to(DEVICE)).cpu(), expected)


def test_samples_in_bfloat16_are_rounded_between_groups_only(as_on_a_gpu):
    layer = SPMLinear(64, 64, stages=20, bias=False, device=DEVICE)
    x = torch.randn(5, 64, device=DEVICE).bfloat16()
    exact = (layer.weight.double() @ x.double().T).T
    found = layer(x)
    assert found.dtype == torch.bfloat16
    # Four groups of five stages; a GPU rounds to nearest, Triton's interpreter towards zero.
    assert (found.double() - exact).norm() < 4 * 2**-8 * exact.norm()


def test_a_device_where_they_fail_is_named_once(monkeypatch):
    def fails(device):
        raise RuntimeError("no C compiler\nand more")

    monkeypatch.setattr(kernels.GroupKernels, "try_out", fails)
    seventh = torch.device("cuda:7")
    with pytest.warns(UserWarning, match=r"cuda:7: SPM layers .*\(no C compiler\)"):
        assert linear._kernels_on(seventh) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert linear._kernels_on(seventh) is None
    linear._kernels_on.cache_clear()


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_trying_them_out_runs_them_both_ways_wherever_the_first_call_is(around):
    with around():
        kernels.GroupKernels.try_out(DEVICE)


def test_an_answer_can_be_changed_in_place(as_on_a_gpu):
    layer = SPMLinear(32, 32, stages=10, bias=False, device=DEVICE)
    layer(torch.randn(3, 32, device=DEVICE)).relu_().sum().backward()
    assert as_on_a_gpu
    assert all(each.grad.abs().sum() > 0 for each in layer.parameters())
