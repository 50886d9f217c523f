"""What cannot be exported is said before it is fitted."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from spm_compress import open_source
from spm_compress.errors import ExportError
from spm_compress.export import outlook

KINDS = {TensorProto.FLOAT: np.float32, TensorProto.DOUBLE: np.float64, TensorProto.BFLOAT16: ml_dtypes.bfloat16}


def write(path: Path, *, kind: int = TensorProto.FLOAT, opset: int = 17, operator: str = "MatMul") -> Path:
    weight = np.random.default_rng(0).standard_normal((40, 48)).astype(KINDS[kind])
    domain = "" if operator == "MatMul" else "mine"
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"], domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", kind, ["batch", 40])],
        [helper.make_tensor_value_info("y", kind, ["batch", 48])],
        [numpy_helper.from_array(weight, "w")],
    )
    imports = [helper.make_opsetid("", opset), helper.make_opsetid("mine", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"opset": 9}, "opset 9, SPM stages need 11 or later"),
        ({"kind": TensorProto.BFLOAT16}, "could not be exported after a fit: .* Could not find an implementation"),
        ({"operator": "Nope"}, "could not be exported after a fit: .* is not a registered function/op"),
    ],
)
def test_a_graph_that_could_not_be_exported_is_refused(options: dict[str, int], what: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=what):
        outlook(open_source(write(tmp_path / "m.onnx", **options)))


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE])
def test_a_graph_that_can_be_exported_is_not(kind: int, tmp_path: Path) -> None:
    assert outlook(open_source(write(tmp_path / "m.onnx", kind=kind))) is None
