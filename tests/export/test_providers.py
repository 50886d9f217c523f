"""Every lowering on every provider that this ONNX Runtime has; `make test-cuda` is for another."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from draw import laid_out, random_operator
from made import fitted_layer

from spm_compress.errors import UsageError
from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.export.verification import check_provider, session
from spm_compress.forms.lowering import Lowering, lowerings
from spm_compress.forms.spm import Gauge, Mixer

# TF32 and other orders of summation; a wrong index or number is far beyond.
TOLERANCE = 2e-3
# Azure's calls a service.
PROVIDERS = [each for each in onnxruntime.get_available_providers() if each != "AzureExecutionProvider"]


@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (384, 1536)])
def test_a_lowering_runs_there_too(shape: tuple[int, int], lowering: Lowering, provider: str) -> None:
    form = laid_out(shape[1], shape[0], Mixer.GENERAL, Gauge.CANONICAL, stages=10)
    operator = random_operator(form, dtype=torch.float32)
    layer = fitted_layer(operator)
    model = ir.serde.serialize_model(layer_model(layer, lowering)).SerializeToString()
    x = np.random.default_rng(0).standard_normal((64, shape[1])).astype(np.float32)
    (found,) = session(model, provider=provider).run(None, {"x": x})
    expected = x @ operator.to(torch.float64).to_dense().numpy().T
    assert np.linalg.norm(found - expected) < TOLERANCE * np.linalg.norm(expected)


def test_a_provider_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UsageError, match="CPUExecutionProvider"):
        check_provider("CPUExecutionProvidr")
