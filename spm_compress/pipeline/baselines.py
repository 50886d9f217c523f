"""The rivals of a compressed model: what ONNX Runtime's own tools make of the same float32 file.

Int4, tried on MiniLM (float32 90.9 MB; agreement on 200 held-out sentences, one thread): rounded to nearest with zero
points, blocks of 32 take 14.7 MB at 0.965, blocks of 128 12.3 MB at 0.945, and these two are kept. In between, 64 has
13.1 MB at 0.953; 16 takes 17.9 MB at 0.973, dominated by 17.1 MB of int8 with tables in int4. Symmetric, 32 has 0.957.
Half-quadratic quantization has 0.970 at 15.9 MB (its zero points are float32), but it knows no `accuracy_level`: a
sentence of 16 tokens took it 2.7 to 8 times as long, on a busy machine. k_quant has 0.964 at 14.7 MB and fails at
blocks of 128 on 384 features. `accuracy_level` 4, products of int8, changes agreement by 0.0003.
"""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from spm_compress.checkpoint.onnx_source import open_graph
from spm_compress.errors import ExportError, SpmError, first_line
from spm_compress.export.saving import size_of
from spm_compress.export.verification import session
from spm_compress.pipeline.standing import Contender, LeftOut
from spm_compress.quiet import quiet

__all__ = ["BASELINES", "WriteBaseline", "write_baselines"]

# (float32, into): reads the first file, writes the second; raises whatever the tool raises
WriteBaseline = Callable[[Path, Path], None]

_ACCURACY_LEVEL = 4
# Tables of fewer rows (types of tokens, constants of shapes) save nothing.
_LEAST_ROWS = 16


def int8(float32: Path, into: Path) -> None:
    """As most call it: one line, weights of one scale a tensor."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(float32, into)


def int8_per_channel(float32: Path, into: Path) -> None:
    """As its documentation advises: constants folded beforehand, a scale a column."""
    from onnxruntime.quantization import quantize_dynamic

    with tempfile.TemporaryDirectory() as folder:
        quantize_dynamic(_folded(float32, Path(folder)), into, per_channel=True)


def int4(float32: Path, into: Path, *, block: int) -> None:
    """MatMulNBits for products, GatherBlockQuantized for tables, both with zero points; constants folded beforehand."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    root.handlers[:] = handlers  # it configures the logging of whoever imports it
    root.setLevel(level)
    with tempfile.TemporaryDirectory() as folder:
        model = onnx.load(_folded(float32, Path(folder)))
    _name_nodes(model)
    gathers = [node for node in model.graph.node if node.op_type == "Gather"]
    large = {each.name for each in model.graph.initializer if _is_table(each, block)}
    tables = [node for node in gathers if node.input[0] in large and _axis(node) == 0]
    skipped = [node.name for node in gathers if node not in tables]
    quantizer = MatMulNBitsQuantizer(
        model,
        block_size=block,
        accuracy_level=_ACCURACY_LEVEL,
        nodes_to_exclude=skipped,
        op_types_to_quantize=("MatMul", "Gather") if tables else ("MatMul",),  # the second asks for opset 21
    )
    quantizer.model.replace_gemm_with_matmul()  # it knows no Gemm, as which most linear layers are exported
    quantizer.process()
    if not any(node.domain == "com.microsoft" for node in quantizer.model.nodes()):
        raise ExportError("no product with a constant matrix and no table is in its graph")
    quantizer.model.save_model_to_file(str(into))


BASELINES: Mapping[str, WriteBaseline] = {
    "int8": int8,
    "int8 per channel": int8_per_channel,
    "int4/32": functools.partial(int4, block=32),
    "int4/128": functools.partial(int4, block=128),
}


def write_baselines(
    float32: Path,
    folder: Path,
    progress: Callable[[str], None] = lambda line: None,
    baselines: Mapping[str, WriteBaseline] = BASELINES,
) -> tuple[tuple[Contender, ...], tuple[LeftOut, ...]]:
    """Write every baseline of a float32 ONNX file into a folder; return those that load, and why the others do not.

    progress: is told a line a baseline. Raises SpmError if `float32` itself cannot be loaded.
    """
    _check(float32)
    folder.mkdir(parents=True, exist_ok=True)
    made, left_out = [], []
    for name, write in baselines.items():
        progress(f"{name}: made by ONNX Runtime's tools")
        path = folder / f"{name.replace('/', '_').replace(' ', '_')}.onnx"
        try:
            _write(write, float32, path)
        except SpmError as error:
            left_out.append(LeftOut(name, str(error)))
            progress(f"{name}: left out ({error})")
            continue
        made.append(Contender(name, path, "baseline"))
    return tuple(made), tuple(left_out)


def _write(write: WriteBaseline, float32: Path, path: Path) -> None:
    """Write one baseline. Raises SpmError where the tool fails or saves nothing, or its file cannot be loaded."""
    try:
        with quiet():
            write(float32.resolve(), path)
    except SpmError:
        raise
    except Exception as error:  # the tools of others assert, and raise many types
        raise ExportError(f"ONNX Runtime's tool fails ({type(error).__name__}: {first_line(error)})") from error
    _check(path)
    if size_of(path) >= size_of(float32):
        raise ExportError("ONNX Runtime's tool makes the file no smaller")


def _check(path: Path) -> None:
    open_graph(path)  # knows every way in which a file is no model
    session(path)


def _folded(path: Path, folder: Path) -> Path:
    """Return the graph as ONNX Runtime simplifies it: constants are initializers, functions inlined."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    folded = folder / "folded.onnx"
    # Its symbolic inference needs sympy and is for activations, whose ranges nobody takes here.
    quant_pre_process(path, folded, skip_symbolic_shape=True)
    return folded


def _name_nodes(model: ModelProto) -> None:
    """Give every node of the graph a name of its own: the quantizer leaves nodes out by name."""
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.name or node.op_type}_{i}"


def _axis(node: NodeProto) -> int:
    return next((each.i for each in node.attribute if each.name == "axis"), 0)


def _is_table(tensor: TensorProto, block: int) -> bool:
    """Tell whether rows of it are looked up; the quantizer would also take indices and single numbers, and fail."""
    return (
        tensor.data_type == TensorProto.FLOAT
        and len(tensor.dims) == 2
        and tensor.dims[0] >= _LEAST_ROWS
        and tensor.dims[1] >= block // 2
    )
