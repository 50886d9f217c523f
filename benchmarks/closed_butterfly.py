"""The butterfly nearest to a matrix as pyfaust has it in closed form; pyfaust is optional."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator

import torch
from torch import Tensor

__all__ = ["butterfly", "is_installed"]

# The orders in which the factors are split off.
_SPLITS = ("bbtree", "left", "right")


def is_installed() -> bool:
    return importlib.util.find_spec("pyfaust") is not None


def butterfly(weight: Tensor) -> Tensor:
    """Return the best of pyfaust's factorizations of weight (2^k, 2^k) (Le, Zheng, Riccietti, Gribonval 2022)."""
    from pyfaust.fact import butterfly as factorize

    with _silence():
        found = [torch.from_numpy(factorize(weight.numpy(), type=split).toarray()) for split in _SPLITS]
    return min(found, key=lambda approximation: float((weight - approximation).norm()))


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Send what compiled code prints to nowhere: pyfaust counts its factors aloud."""
    stdout = os.dup(1)
    try:
        with open(os.devnull, "w") as nowhere:  # noqa: PTH123 - a device
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(stdout, 1)
        os.close(stdout)
