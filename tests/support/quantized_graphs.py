"""ONNX models that ONNX Runtime's own tools have quantized."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

__all__ = ["dynamically", "in_blocks", "statically"]

logging.getLogger("onnxruntime.quantization").setLevel(logging.ERROR)


class _Inputs(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, path: Path) -> None:
        (value,) = onnx.load(path).graph.input
        name, width = value.name, value.type.tensor_type.shape.dim[-1].dim_value
        rng = np.random.default_rng(0)
        self._left: Iterator[dict[str, Any]] = iter([{name: rng.normal(size=(4, width)).astype(np.float32)}])

    def get_next(self) -> Any:
        return next(self._left, None)


def statically(path: Path, out: Path, *, fmt: QuantFormat = QuantFormat.QDQ, without: Sequence[str] = ()) -> None:
    """Write a model with int8 weights and activations."""
    quantize_static(path, out, _Inputs(path), quant_format=fmt, nodes_to_exclude=[*without])


def dynamically(path: Path, out: Path, *, without: Sequence[str] = ()) -> None:
    """Write a model with int8 weights, whose activations are rounded as it runs."""
    quantize_dynamic(path, out, nodes_to_exclude=[*without])


def in_blocks(path: Path, out: Path, *, fmt: QuantFormat = QuantFormat.QOperator, without: Sequence[str] = ()) -> None:
    """Write a model with weights of 4 bits, a scale for every 32."""
    model = onnx.load(path)
    if fmt is QuantFormat.QDQ:
        model.opset_import[0].version = 21
    quantizer = MatMulNBitsQuantizer(model, block_size=32, quant_format=fmt, nodes_to_exclude=[*without])
    quantizer.process()
    quantizer.model.save_model_to_file(str(out))
