"""What ONNX Runtime really runs: the optimized graph, read back."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxsim
import onnxslim
import pytest
import torch
from draw import laid_out, random_operator
from made import fitted_layer
from torch import nn

from spm_compress.checkpoint import FittedLayer
from spm_compress.compress.job import digest
from spm_compress.export.graph import from_module
from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.export.splicing.splice import splice
from spm_compress.export.verification import session
from spm_compress.forms.lowering import Blocks, Dense, Layout, Lowering, Stages, lowerings
from spm_compress.forms.spm import Gauge, Mixer

ORDER_ONLY = {"Reshape", "Flatten", "Transpose"}


def layer_of(out: int, into: int, stages: int = 10, name: str = "layer.weight") -> FittedLayer:
    form = laid_out(into, out, Mixer.GENERAL, Gauge.CANONICAL, stages=stages)
    return fitted_layer(random_operator(form, dtype=torch.float32), name)


def run_time_nodes(model: ir.Model, folder: Path) -> Counter[str]:
    path = folder / "optimized.onnx"
    session(ir.serde.serialize_model(model).SerializeToString(), 1, optimized=path)
    optimized = onnx.load(path)
    assert not optimized.functions
    return Counter(node.op_type for node in optimized.graph.node)


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (384, 1536)])
def test_blocks_are_one_product_a_group_and_nothing_is_computed_again(
    shape: tuple[int, int], layout: Layout, tmp_path: Path
) -> None:
    nodes = run_time_nodes(layer_model(layer_of(*shape), Blocks(layout)), tmp_path)
    assert nodes["MatMul"] + nodes["FusedMatMul"] == 2
    # Widening and narrowing are part of the products features first, a Gather or a sum rows first.
    rest = set(nodes) - {"MatMul", "FusedMatMul"} - ORDER_ONLY
    assert rest == (set() if layout is Layout.FEATURE_MAJOR or shape == (384, 384) else rest & {"Gather", "ReduceSum"})


@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (100, 37)])
def test_dense_is_the_product_that_was_there(shape: tuple[int, int], tmp_path: Path) -> None:
    assert run_time_nodes(layer_model(layer_of(*shape), Dense()), tmp_path) == {"MatMul": 1}


def test_stages_gather_multiply_and_add_once_a_stage(tmp_path: Path) -> None:
    nodes = run_time_nodes(layer_model(layer_of(384, 384), Stages()), tmp_path)
    # one Mul for the scales at the end; canonical stages have one number a feature
    assert {name: count for name, count in nodes.items() if name not in ORDER_ONLY} == {
        "Gather": 10,
        "Mul": 11,
        "Add": 10,
    }


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
def test_the_file_holds_the_numbers_and_little_else(lowering: Lowering) -> None:
    layer = layer_of(2048, 2048)
    size = len(ir.serde.serialize_model(layer_model(layer, lowering)).SerializeToString())
    numbers = sum(array.nbytes for array in layer.stored.tensors.values())
    assert numbers == 4 * layer.operator.parameter_count
    assert size < numbers + 24_000  # nodes; 2048 x 2048 values would be 16 MB, one index table 16,384 bytes


@pytest.mark.parametrize("lowering", lowerings(), ids=lambda lowering: lowering.name)
def test_an_export_survives_the_simplifiers(lowering: Lowering) -> None:
    model = ir.serde.serialize_model(layer_model(layer_of(256, 256), lowering))
    size = len(model.SerializeToString())
    x = {"x": np.random.default_rng(0).standard_normal((5, 256)).astype(np.float32)}
    (expected,) = session(model.SerializeToString()).run(None, x)
    simplified, is_valid = onnxsim.simplify(model)
    assert is_valid
    for other in (simplified, onnxslim.slim(model)):
        (found,) = session(other.SerializeToString()).run(None, x)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        # Neither looks into functions, but onnxslim computes those that have no input but constants: matrices, blocks.
        computed = {Dense: 4 * 256 * 256, Blocks: 2 * 4 * 32 * 256}.get(type(lowering), 0)
        limit = 1.05 * size + computed
        assert len(other.SerializeToString()) < limit


class Attention(nn.Module):
    """The linears of an attention block, and a feedforward block with a residual connection."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(64, 64) for _ in range(3))
        self.up, self.down = nn.Linear(64, 128), nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mixed = torch.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)
        return mixed + self.down(nn.functional.gelu(self.up(mixed)))


def spliced_attention(lowering: Lowering) -> ir.Model:
    torch.manual_seed(0)
    module = Attention().eval()
    model = from_module(module, {"x": torch.zeros(2, 3, 64)}, {"x": {0: "batch", 1: "sequence"}}, ["y"])
    layers = []
    for name, linear in module.named_children():
        assert isinstance(linear, nn.Linear)
        layer = layer_of(*linear.weight.shape, name=f"{name}.weight")
        known = digest(linear.weight.detach())
        layers.append(fitted_layer(layer.operator, layer.name, known))
    assert len(splice(model, layers, {layer.name: lowering for layer in layers}).nodes) == 5
    return model


@pytest.mark.parametrize("lowering", [Stages(), Blocks()], ids=lambda lowering: lowering.name)
def test_layers_share_turns_and_stay_features_first_between_them(lowering: Lowering) -> None:
    model = spliced_attention(lowering)
    kinds = Counter(node.op_type.rstrip("0123456789") for node in model.graph)
    # q, k and v share one; the feedforward block has its own, and none around its bias and activation
    assert kinds["FeaturesFirst"] == 2
    assert kinds["FeaturesLast"] == 4
    assert kinds["LeadingDimensions"] == 1, "all have the same batch and sequence"


@pytest.mark.slow
def test_features_first_or_last_computes_the_same() -> None:
    x = {"x": np.random.default_rng(0).standard_normal((2, 5, 64)).astype(np.float32)}
    (expected,) = session(ir.serde.serialize_model(spliced_attention(Dense())).SerializeToString()).run(None, x)
    for lowering in lowerings():
        (found,) = session(ir.serde.serialize_model(spliced_attention(lowering)).SerializeToString()).run(None, x)
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
