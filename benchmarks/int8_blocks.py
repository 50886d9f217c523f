"""Are blocks of stages faster as whole numbers? Batched products in float32 beside batched MatMulInteger.

    python benchmarks/int8_blocks.py [--widths N ...] [--turns N]

Square layers of random numbers, one thread. float32: the faster layout of the lowering `blocks`. int8: the state is
rounded by DynamicQuantizeLinear before every group and multiplied with levels of -64 to 64, beyond which kernels
without VNNI saturate; a scale a block and column, or one for a group. All sessions in turns, medians of the ratios of
the turns. Errors are those of the outputs, relative, on Gaussian inputs. Results are kept in
benchmarks/results/int8_blocks.json, which docs/measurements.md has its table from.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from onnxscript import OpBuilder, build_graph
from origin import origin

from spm_compress.checkpoint import FittedLayer
from spm_compress.export.splicing.layer_model import IR_VERSION, OPSET, layer_model
from spm_compress.export.verification import session
from spm_compress.forms import Operator, StoredOperator
from spm_compress.forms.lowering import Blocks, Layout
from spm_compress.forms.spm import SPM, build_spm
from spm_compress.forms.spm.block_products import chain_blocks
from spm_compress.forms.spm.pairing import Shuffle

RESULTS = Path(__file__).resolve().parent / "results" / "int8_blocks.json"
ROWS, STAGES = (16, 64, 512), (10, 20)
OUTERMOST = 64
# Product of a group, (blocks, rows, b) with (blocks, b, b).
Product = Callable[[OpBuilder, ir.Value, np.ndarray], ir.Value]


def random_operator(width: int, stages: int) -> Operator:
    form = build_spm(width, width, stages=stages)
    generator = torch.Generator().manual_seed(0)
    arrays = {name: torch.randn(shape, generator=generator) / 2**0.5 for name, shape in form.shapes.items()}
    return Operator(form, arrays)


def constant(op: OpBuilder, values: np.ndarray) -> ir.Value:
    return op.Constant(value=ir.tensor(values))


def in_float32(op: OpBuilder, state: ir.Value, blocks: np.ndarray) -> ir.Value:
    return op.MatMul(state, constant(op, blocks))


def in_int8(axes: tuple[int, ...]) -> Product:
    """axes: of (blocks, b, b), over which one scale stands."""

    def product(op: OpBuilder, state: ir.Value, blocks: np.ndarray) -> ir.Value:
        scales = np.abs(blocks).max(axes, keepdims=True) / OUTERMOST
        levels = np.round(blocks / scales).astype(np.int8)
        rounded, scale, zero = op.DynamicQuantizeLinear(state, _outputs=3)
        whole = op.Cast(op.MatMulInteger(rounded, constant(op, levels), zero), to=ir.DataType.FLOAT)
        return op.Mul(whole, op.Mul(scale, constant(op, scales if scales.size > 1 else scales.reshape(()))))

    return product


INT8: Mapping[str, Product] = {"a scale a column": in_int8((1,)), "one scale": in_int8((0, 1, 2))}


def by_groups(operator: Operator, multiplied: Product) -> bytes:
    """Return a model of a square layer, rows first, whose groups are multiplied in some way."""
    form = operator.form
    assert isinstance(form, SPM)
    (chain,) = form.chains
    made = chain_blocks(chain, operator.arrays["0.diagonal"], operator.arrays["0.off_diagonal"])

    def body(op: OpBuilder, x: ir.Value) -> ir.Value:
        def shaped(state: ir.Value, *sizes: int) -> ir.Value:
            return op.Reshape(state, constant(op, np.array([-1, *sizes])))

        for group, blocks in zip(chain.groups, made, strict=True):
            if isinstance(group.order, Shuffle) and group.order.rows > 1:
                x = op.Transpose(shaped(x, group.order.rows, chain.width // group.order.rows), perm=[0, 2, 1])
            state = op.Transpose(shaped(x, chain.width // group.block, group.block), perm=[1, 0, 2])
            x = op.Transpose(multiplied(op, state, blocks.mT.contiguous().numpy()), perm=[1, 0, 2])
        return shaped(x, chain.width)

    float32 = ir.TensorType(ir.DataType.FLOAT)
    x, y = (ir.Value(name=name, type=float32, shape=ir.Shape(["rows", chain.width])) for name in "xy")
    graph = build_graph(body, [x], [y], opset_imports={"": OPSET}, name="groups")
    return ir.serde.serialize_model(ir.Model(graph, ir_version=IR_VERSION)).SerializeToString()


def seconds(runtime: onnxruntime.InferenceSession, x: np.ndarray, count: int) -> float:
    """Return the median time of a call after one that is not timed."""
    runtime.run(None, {"x": x})
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        runtime.run(None, {"x": x})
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measured(width: int, stages: int, turns: int) -> list[dict[str, object]]:
    """Return a row for every number of rows."""
    operator = random_operator(width, stages)
    layer = FittedLayer(("w",), operator.shape, "F32", "", 0.0, 0.0, 0, 0, "", StoredOperator.of(operator))
    models = {
        layout.value: ir.serde.serialize_model(layer_model(layer, Blocks(layout))).SerializeToString()
        for layout in (Layout.FEATURE_MAJOR, Layout.BATCH_MAJOR)
    }
    floats = list(models)
    models |= {name: by_groups(operator, product) for name, product in INT8.items()}
    runtimes = {name: session(model, 1) for name, model in models.items()}
    groups = session(by_groups(operator, in_float32), 1)
    found = []
    for rows in ROWS:
        x = np.random.default_rng(0).standard_normal((rows, width)).astype(np.float32)
        (exact,) = runtimes[floats[0]].run(None, {"x": x})

        def error(runtime: onnxruntime.InferenceSession, x: np.ndarray = x, exact: np.ndarray = exact) -> float:
            (own,) = runtime.run(None, {"x": x})
            return float(np.linalg.norm(own - exact) / np.linalg.norm(exact))

        assert error(groups) < 1e-5  # what is rounded is the layer itself
        times: dict[str, list[float]] = {name: [] for name in runtimes}
        for _ in range(turns):
            for name, runtime in runtimes.items():
                times[name].append(seconds(runtime, x, 5))
        best = min(floats, key=lambda name: statistics.median(times[name]))
        row: dict[str, object] = {
            "width": width,
            "stages": stages,
            "rows": rows,
            "microseconds": round(1e6 * statistics.median(times[best]), 1),
            "layout": best,
        }
        for name in INT8:
            ratios = [own / mine for own, mine in zip(times[best], times[name], strict=True)]
            row[name] = {"speed": round(statistics.median(ratios), 3), "error": round(error(runtimes[name]), 5)}
        found.append(row)
        print(json.dumps(row), flush=True)
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[768, 1024, 2048, 4096])
    parser.add_argument("--turns", type=int, default=15)
    asked = parser.parse_args(arguments)
    rows = [row for width in asked.widths for stages in STAGES for row in measured(width, stages, asked.turns)]
    result = {
        **origin(__file__, arguments),
        "onnxruntime": onnxruntime.__version__,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
