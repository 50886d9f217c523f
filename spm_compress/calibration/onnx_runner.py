"""ONNX models, watched by making the inputs of their products outputs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor

from spm_compress.calibration.data import Batch, check_names, read_batches
from spm_compress.calibration.padding import real_rows
from spm_compress.checkpoint.bias_corrections import correct_bias
from spm_compress.checkpoint.onnx_source import open_graph
from spm_compress.checkpoint.products import Product, inline_products, products, replace_matrix
from spm_compress.checkpoint.source import Source
from spm_compress.errors import SourceError, first_line

__all__ = ["OnnxRunner", "declared_dtype", "open_onnx_runner"]


class OnnxRunner:
    """A Runner of an ONNX graph in ONNX Runtime, on the CPU. Products inside branches and loops are not watched."""

    def __init__(self, path: Path, model: ir.Model, batches: Sequence[Batch]) -> None:
        self.path = path
        self.model = model
        self.batches = batches
        self.products: dict[str, list[Product]] = {}
        for product in products(model):
            if not product.root.name or product.node.graph is not model.graph:
                continue
            same = self.products.setdefault(product.root.name, [])
            # A product with the transposed weight has other inputs; the first one says which way the weight is read.
            if not same or product.is_transposed == same[0].is_transposed:
                same.append(product)
        self._sessions: dict[tuple[str, ...], onnxruntime.InferenceSession] = {}

    def order(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the names in the order of the graph's nodes; those of one value together."""
        wanted = set(names) & set(self.products)
        position = {id(node): i for i, node in enumerate(self.model.graph)}
        first = {name: min(position[id(each.node)] for each in self.products[name]) for name in wanted}
        groups: dict[tuple[str, ...], list[str]] = {}
        for name in sorted(wanted, key=lambda each: first[each]):
            groups.setdefault(tuple(_tap(each) for each in self.products[name]), []).append(name)
        return [tuple(group) for group in groups.values()]

    def inputs(self, names: Sequence[str], batch: Batch) -> dict[str, list[Tensor]]:
        """Run one batch; return name -> (rows, n) float32 at each use. Raises SourceError if the model cannot run."""
        watched = [name for name in names if name in self.products]
        taps = tuple(dict.fromkeys(_tap(product) for name in watched for product in self.products[name]))
        try:
            session = self._session(taps)
            feeds = {each.name: batch[each.name].astype(declared_dtype(each.type)) for each in session.get_inputs()}
            inside = [tap for tap in taps if tap not in feeds]
            # No names would mean all outputs.
            values = {**feeds, **(dict(zip(inside, session.run(inside, feeds), strict=True)) if inside else {})}
        except Exception as error:  # ONNX Runtime's own types have no common base
            raise SourceError(f"{self.path}: does not run on the calibration data ({first_line(error)})") from error
        rows: dict[tuple[str, bool], Tensor] = {}
        for name in watched:
            for product in self.products[name]:
                key = _tap(product), product.node.op_type == "Conv"
                if key not in rows:
                    values_of = np.moveaxis(values[key[0]], 1, -1) if key[1] else values[key[0]]
                    rows[key] = real_rows(torch.from_numpy(np.ascontiguousarray(values_of)), batch)
        return {
            name: [rows[_tap(product), product.node.op_type == "Conv"] for product in self.products[name]]
            for name in watched
        }

    def replace(self, name: str, weight: Tensor, correction: Tensor) -> None:
        """From now on compute with another weight (out, in) and add correction (out,)."""
        for i, product in enumerate(self.products[name]):
            replace_matrix(self.model, product, weight.double().numpy(), f"{name}.replaced.{i}")
            correct_bias(self.model, product, correction.double().numpy(), f"{name}.bias_correction.{i}")
        self._sessions.clear()

    def _session(self, taps: tuple[str, ...]) -> onnxruntime.InferenceSession:
        if taps not in self._sessions:
            self._sessions.clear()
            model = self.model.clone()
            values = {value.name: value for node in model.graph for value in node.outputs}
            there = {value.name for value in (*model.graph.outputs, *model.graph.inputs)}
            for tap in taps:
                if tap not in there:
                    model.graph.outputs.append(values[tap])
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 3
            serialized = ir.serde.serialize_model(model).SerializeToString()
            self._sessions[taps] = onnxruntime.InferenceSession(serialized, options, providers=["CPUExecutionProvider"])
        return self._sessions[taps]


def open_onnx_runner(source: Source, data: Path) -> OnnxRunner:
    """Open the graph of a source. Raises SourceError or UsageError as `open_graph` and `read_batches`."""
    assert source.graph is not None
    model = open_graph(source.graph)
    ir.external_data.load_to_model(model)  # a session made from bytes does not know the folder
    inline_products(model)
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    sizes = [value.shape[0] for value in inputs if value.shape]
    fixed = next((size for size in sizes if isinstance(size, int) and size > 0), None)  # -1 of some exporters: any
    batches = read_batches(source, data, fixed)
    names = [value.name or "" for value in inputs]
    check_names(batches, data, names, names)
    return OnnxRunner(source.graph, model, batches)


def _tap(product: Product) -> str:
    value = product.node.inputs[0]
    assert value is not None and value.name
    return value.name


def declared_dtype(declared: str) -> Any:
    """Return the numpy dtype of an input that ONNX Runtime declares as tensor(float), tensor(int64), ..."""
    name = declared.removeprefix("tensor(").removesuffix(")")
    return np.dtype({"float": "float32", "double": "float64"}.get(name, name))
