"""torch's table of ONNX functions, which each of its exports makes anew in 0.7 s, made once in a process of tests."""

from __future__ import annotations

import functools

from torch.onnx._internal.exporter._registration import ONNXRegistry

ONNXRegistry.from_torchlib = staticmethod(functools.cache(ONNXRegistry.from_torchlib))  # type: ignore[method-assign]
