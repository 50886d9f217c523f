"""Latency of exported layers and models against the dense ones, as ratios within one run.

    python benchmarks/latency.py [layers] [transformer] [minilm] [simplifiers] [large]

layers: square layers at 64 rows, one thread. transformer: two encoder layers 1024 wide with 4096-wide feedforward,
every linear in 10 stages. minilm: all-MiniLM-L6-v2 in 10 stages. simplifiers: its size after onnxsim and onnxslim.
large: a model over 2 GB, loaded from elsewhere. The last two are not among those that run without a name.
"""

from __future__ import annotations

import functools
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxsim
import onnxslim
import torch
from real_models import fetched
from transformers import BertConfig, BertModel

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact, FittedLayer
from spm_compress.codecs import FLOAT32
from spm_compress.export.measuring.latency import BenchSettings, measure
from spm_compress.export.measuring.timing import interleaved
from spm_compress.export.splicing.layer_model import dense_model, layer_model
from spm_compress.export.trials import random_inputs
from spm_compress.export.verification import compare, run, session
from spm_compress.forms import Operator, StoredOperator
from spm_compress.forms.lowering import Blocks, Dense, Layout, Stages
from spm_compress.forms.onnx_function import write_functions
from spm_compress.forms.spm import build_spm

ROWS = 64


def layers() -> None:
    """Two fused groups of five stages, by itself and between neighbours that are features first too."""
    print(f"\nlayers at {ROWS} rows, 1 thread: times as fast as dense")
    print("| n | dense us | naive chain | stages | blocks | blocks between such layers |\n|---|---|---|---|---|---|")
    for width in (768, 1536, 4096):
        layer = random_layer(width)
        ways = {
            "dense": dense_model(layer),
            "naive": layer_model(layer, Stages(Layout.BATCH_MAJOR)),
            "stages": layer_model(layer, Stages()),
            "blocks": layer_model(layer, Blocks()),
            "inside": features_first_model(layer),
        }
        x = np.random.default_rng(0).standard_normal((ROWS, width)).astype(np.float32)
        calls = {
            name: functools.partial(
                session(serialized(model), 1).run, None, {"x": x.T.copy() if name == "inside" else x}
            )
            for name, model in ways.items()
        }
        times = {name: timing.median for name, timing in interleaved(calls, repeats=60, seconds=20).items()}
        ratios = " | ".join(f"{times['dense'] / times[name]:.1f}x" for name in list(ways)[1:])
        print(f"| {width} | {times['dense'] * 1e6:.0f} | {ratios} |", flush=True)


def random_layer(width: int) -> FittedLayer:
    form = build_spm(width, width, stages=10).stored(FLOAT32)
    generator = torch.Generator().manual_seed(0)
    arrays = {name: 0.5 * torch.randn(shape, generator=generator) for name, shape in form.shapes.items()}
    stored = StoredOperator.of(Operator(form, arrays))
    return FittedLayer(("layer",), (width, width), "F32", "", 0.0, 0.0, 0, 0, "", stored)


def features_first_model(layer: FittedLayer) -> ir.Model:
    """The function of a layer without turns around it: x (n, rows) -> y (n, rows)."""
    width = layer.shape[0]
    written = write_functions(layer.stored, Blocks(), ir.DataType.FLOAT, 20, "layer")
    function = written.function
    x, y = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([width, "rows"])) for name in "xy"
    )
    arrays = []
    for name, values in layer.stored.tensors.items():
        tensor = ir.tensor(values.numpy(), name=name)
        arrays.append(ir.Value(name=name, type=ir.TensorType(tensor.dtype), shape=tensor.shape, const_value=tensor))
    node = ir.Node(function.domain, function.name, [x, *arrays], outputs=[y])
    imports = {"": 20, function.domain: 1}
    graph = ir.Graph([x], [y], nodes=[node], initializers=arrays, opset_imports=imports, name="layer")
    return ir.Model(graph, ir_version=9, functions=[function, *written.needed])


def serialized(model: ir.Model) -> bytes:
    return ir.serde.serialize_model(model).SerializeToString()


def transformer() -> None:
    """Random weights: latency does not depend on them, and no fit is needed (0 steps)."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        config = BertConfig(
            hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16, vocab_size=1000
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(folder)
        exported("transformer 1024/4096", Path(folder), FitSettings(steps=0), Path(folder), [(1, 128)])


def minilm() -> None:
    """At 1, 16, 128 and 2,048 tokens; the numbers of the fit do not matter here either."""
    with tempfile.TemporaryDirectory() as folder:
        sizes = [(1, 1), (1, 16), (1, 128), (16, 128)]
        exported("all-MiniLM-L6-v2", fetched("minilm"), FitSettings(steps=0), Path(folder), sizes)


def simplifiers() -> None:
    """Size of an export after each, over its size before; outputs compared."""
    source = open_source(fetched("minilm"))
    print("\nall-MiniLM-L6-v2, size after a simplifier over the size before")
    print("| lowering | onnxsim | onnxslim |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = CompressSettings(FitSettings(steps=0), include=("encoder.*",))
        artifact = fit_model(source, settings, beside=folder)
        for lowering in (Stages(), Blocks(), Dense()):
            path = export_onnx(artifact, folder / "m.onnx", source=source, settings=ExportSettings(lowering)).path
            model = onnx.load(path)
            inputs = random_inputs(ir.load(path), 3, 16, seed=0)
            expected = run(session(path), inputs)
            growths = []
            for simplified in (onnxsim.simplify(model)[0], onnxslim.slim(model)):
                as_bytes = simplified.SerializeToString()
                assert compare(run(session(as_bytes), inputs), expected) < 1e-6
                growths.append(len(as_bytes) / path.stat().st_size)
            print(f"| {lowering.name} | {growths[0]:.2f} | {growths[1]:.2f} |", flush=True)


def exported(
    title: str, model: Path, fit: FitSettings, folder: Path, sizes: Sequence[tuple[int, int]], threads: int = 1
) -> None:
    artifact = fit_model(open_source(model), CompressSettings(fit, include=("encoder.*",)), beside=folder)
    dense, automatic, naive = (folder / f"{name}.onnx" for name in ("dense", "auto", "naive"))
    source = open_source(model)
    settings = ExportSettings(batches=(1, 16), sequence=128, threads=threads)
    result = export_onnx(artifact, automatic, source=source, settings=settings, dense_path=dense)
    export_onnx(artifact, naive, source=source, settings=ExportSettings(Stages(Layout.BATCH_MAJOR)))
    chosen = sorted({choice.lowering.name for choice in result.choices})
    print(f"\n{title}, 10 stages, {threads} thread, lowering auto ({', '.join(chosen)}): times as fast as dense")
    print("| batch x sequence | dense ms | auto | naive chain |\n|---|---|---|---|")
    for batch, sequence in sizes:
        at = BenchSettings(threads=(threads,), batches=(batch,), sequences=(sequence,), seconds=20)
        (fast,), (slow,) = (measure(path, dense, at).latencies for path in (automatic, naive))
        assert fast.against is not None
        print(
            f"| {batch} x {sequence} | {fast.against.median * 1e3:.1f} | {fast.ratio:.2f}x | {slow.ratio:.2f}x |",
            flush=True,
        )


def large() -> None:
    """34 matrices of 4096x4096 in a chain: 2.3 GB, of which one is fitted."""
    count, width = 34, 4096
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "elsewhere").mkdir()
        nodes, weights = [], []
        value = x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["batch", width]))
        for i in range(count):
            array = np.random.default_rng(i).standard_normal((width, width), dtype=np.float32) / width**0.5
            tensor = ir.tensor(array, name=f"weight.{i}")
            weights.append(ir.Value(name=tensor.name, type=ir.TensorType(tensor.dtype), shape=tensor.shape))
            weights[-1].const_value = tensor
            nodes.append(ir.Node("", "MatMul", [value, weights[-1]], name=f"product.{i}"))
            value = nodes[-1].outputs[0]
            value.type, value.shape, value.name = x.type, x.shape, f"y.{i}"
        graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 18}, name="large")
        dense = folder / "dense.onnx"
        ir.save(ir.Model(graph, ir_version=9), dense, external_data="dense.data", max_workers=1)
        artifact: Artifact = fit_model(
            open_source(dense), CompressSettings(FitSettings(steps=0), include=("weight.3",)), beside=folder
        )
        out = folder / "out.onnx"
        result = export_onnx(artifact, out, source=open_source(dense), settings=ExportSettings(Blocks()))
        expected = session(out).run(None, {"x": np.ones((1, width), np.float32)})[0]
        files = [file for file in folder.iterdir() if file.name.startswith("out.")]
        for file in files:
            file.rename(folder / "elsewhere" / file.name)
        found = session(folder / "elsewhere" / "out.onnx").run(None, {"x": np.ones((1, width), np.float32)})[0]
        assert np.array_equal(found, expected)
        print(f"\nlarge: {result.dense_bytes / 1e9:.2f} GB dense, {result.bytes / 1e9:.2f} GB exported in", end=" ")
        print(f"{', '.join(sorted(file.name for file in files))}; verified, reloaded from another directory")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ["layers", "transformer", "minilm"]:
        {
            "layers": layers,
            "transformer": transformer,
            "minilm": minilm,
            "simplifiers": simplifiers,
            "large": large,
        }[chosen]()
