"""From an artifact to ONNX files: dense graph, splice, write, verify."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

from spm_compress.checkpoint.artifact import Artifact, FittedLayer
from spm_compress.checkpoint.files import write_whole
from spm_compress.checkpoint.source import Source, open_source
from spm_compress.errors import ExportError
from spm_compress.export.graph import WAYS, chain_of_linears, from_huggingface, from_module, from_onnx
from spm_compress.export.lowering import Lowering, Stages
from spm_compress.export.splice import Spliced, layer_model, splice, with_operator_matrices
from spm_compress.export.verification import Agreement, check_file, compare, random_inputs, require, run, session

__all__ = ["BATCHES", "Exported", "export_layers", "export_onnx", "source_of"]

# Batch sizes at which every exported file is compared with the torch operator.
BATCHES = (1, 3, 16)
_SEQUENCE = 16
_LIMIT = 2**31  # what one protobuf file can hold


@dataclass(frozen=True)
class Exported:
    """One file that was written and verified.

    dense_bytes: size of the dense graph it came from; missing: fitted layers that the graph does not use.
    """

    path: Path
    bytes: int
    dense_bytes: int
    spliced: Spliced
    agreements: tuple[Agreement, ...]


def source_of(artifact: Artifact, artifact_path: Path, given: Path | None = None) -> Source:
    """Open the model that an artifact was fitted from: the path given, or the one it recorded.

    Raises ExportError if it is gone or has changed since the fit.
    """
    path = given or artifact_path.parent / str(artifact.source["path"])
    if not path.exists():
        raise ExportError(f"{path}: the model that was fitted is not there; name it with --source, or {WAYS}")
    source = open_source(path)
    recorded = artifact.source["files"]
    for name, found in source.hashes().items():
        if name in recorded and recorded[name] != found:
            raise ExportError(f"{path}: {name} has changed since it was fitted; run fit again, or restore it")
    return source


def export_onnx(
    artifact: Artifact,
    path: Path,
    *,
    source: Source | None = None,
    graph: Path | None = None,
    activation: str = "relu",
    lowering: Lowering | None = None,
) -> Exported:
    """Write the whole compressed model as one ONNX file and verify it against the torch operator.

    Give the dense graph (`graph`, an ONNX file), or the `source` of a Hugging Face folder or of a plain chain of
    linears (`activation` stands between them). The file appears only if it is verified.

    Raises ExportError where no graph can be had, VerificationError if ONNX Runtime and torch differ.
    """
    dense = _dense_graph(source, graph, activation)
    as_bytes = ir.serde.serialize_model(dense).SerializeToString()
    reference = ir.serde.deserialize_model(ir.serde.serialize_model(dense))
    with_operator_matrices(reference, artifact.layers)
    spliced = splice(dense, artifact.layers, lowering or Stages())
    agreements = _write_verified(dense, reference, path)
    return Exported(path, path.stat().st_size, len(as_bytes), spliced, agreements)


def export_layers(artifact: Artifact, folder: Path, *, lowering: Lowering | None = None) -> list[Exported]:
    """Write each fitted layer, without its bias, as an ONNX model of its own into a folder; verify each."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ExportError(f"{folder}: cannot be made a folder ({error.strerror}); choose another name") from error
    written = []
    for layer in artifact.layers:
        path = folder / f"{layer.name.replace('/', '_')}.onnx"
        model = layer_model(layer, lowering or Stages())
        agreements = _write_verified(model, _dense_layer(layer), path)
        out, into = layer.shape
        spliced = Spliced({layer.name: [layer.name]}, ())
        written.append(Exported(path, path.stat().st_size, 4 * out * into, spliced, agreements))
    return written


def _dense_graph(source: Source | None, graph: Path | None, activation: str) -> ir.Model:
    if graph is not None:
        return from_onnx(graph)
    if source is None:
        raise ExportError(f"there is no graph to put the layers into; {WAYS}")
    if source.config is not None:
        return from_huggingface(source)[1]
    chain = chain_of_linears(source, activation)
    width = next(layer.in_features for layer in chain if isinstance(layer, torch.nn.Linear))
    example = {"input": torch.zeros(2, width)}
    return from_module(chain, example, {"input": {0: "batch"}}, ["output"])


def _dense_layer(layer: FittedLayer) -> ir.Model:
    """Return y = x S^T with the torch operator's matrix as an ordinary MatMul."""
    weight = layer.spm.to(torch.float64).to_dense().float().T.contiguous()
    tensor = ir.tensor(weight.numpy(), name="weight")
    value = ir.Value(
        name="weight", shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", layer.shape[1]]))
    node = ir.Node("", "MatMul", [x, value])
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.FLOAT), ir.Shape(["rows", layer.shape[0]])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[value], opset_imports={"": 20}, name="dense")
    return ir.Model(graph, ir_version=9)


def _write_verified(model: ir.Model, reference: ir.Model, path: Path) -> tuple[Agreement, ...]:
    proto = ir.serde.serialize_model(model)
    if proto.ByteSize() >= _LIMIT:
        raise ExportError(f"{path}: the model is larger than the 2 GB that one ONNX file can hold")
    expected = session(ir.serde.serialize_model(reference).SerializeToString())
    with write_whole(path) as temporary:
        temporary.write_bytes(proto.SerializeToString(deterministic=True))
        check_file(temporary)
        found = session(temporary)
        agreements = []
        for batch in BATCHES:
            inputs = random_inputs(reference, batch, _SEQUENCE, seed=batch)
            agreements.append(Agreement(batch, compare(run(found, inputs), run(expected, inputs))))
        require(agreements, path.name)
    return tuple(agreements)
