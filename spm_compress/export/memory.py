"""Memory that is no longer needed, given back before more is taken."""

from __future__ import annotations

import contextlib
import ctypes
import mmap

import numpy as np
import onnx_ir as ir

from spm_compress.checkpoint.onnx_source import all_tensors

__all__ = ["forget_tensors", "release", "trim"]


def release(model: ir.Model) -> None:
    """Let go of the memory into which data beside a model was read; what is read again comes from the files again."""
    for _, tensor in all_tensors(model):
        base: object = tensor.numpy() if isinstance(tensor, ir.Tensor) else None
        while isinstance(base, (np.ndarray, memoryview)):
            base = base.base if isinstance(base, np.ndarray) else base.obj
        if isinstance(base, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
            base.madvise(mmap.MADV_DONTNEED)


def forget_tensors(model: ir.Model) -> None:
    """Take the values of all initializers from a model that has been written: the exporter still knows the model."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.const_value = None


def trim() -> None:
    """Return freed memory to the operating system, where the C library can be told to (glibc).

    What ONNX Runtime folds while it loads a model leaves much behind: 770 of 1,170 MB for a decoder of 135 M numbers
    in 210 layers.
    """
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)
