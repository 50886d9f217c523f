"""Tables of ONNX operators that others make anew again and again, made once in a process of tests.

torch's table of functions, 0.7 s of each of its exports; the signature of an operator, half of what onnxscript needs to
write a node of it.
"""

from __future__ import annotations

import functools

import onnx
from onnx_ir.schemas import OpSignature
from torch.onnx._internal.exporter._registration import ONNXRegistry

_read = OpSignature.from_op_schema


@functools.cache
def _signature(name: str, version: int, domain: str) -> OpSignature:
    return _read(onnx.defs.get_schema(name, version, domain))


def _known(schema: onnx.defs.OpSchema) -> OpSignature:
    return _signature(schema.name, schema.since_version, schema.domain)


ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
OpSignature.from_op_schema = staticmethod(_known)  # type: ignore[method-assign, assignment]
