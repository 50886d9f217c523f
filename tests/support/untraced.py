"""Coverage looks away where others' Python runs: before Python 3.12 a trace function slows every line of it down.

While torch exports: 59 s under it, 34 s without, for an encoder and a decoder. Of ours it runs the forward of modules,
which tests run beside it too, to compare. And in programs that run what other tests have measured.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")


def untraced(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function as it runs without the trace function of its thread, which is put back at the end."""

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> T:
        tracer = sys.gettrace()
        sys.settrace(None)
        try:
            return function(*args, **kwargs)
        finally:
            sys.settrace(tracer)

    return called


def unmeasured() -> dict[str, str]:
    """Return the environment of a program that coverage does not start in."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}


torch.onnx.export = untraced(torch.onnx.export)
torch.export.export = untraced(torch.export.export)
