"""Computations whose result has the same bits whatever the number of threads.

torch's matrix products and its sums along one axis do so by themselves. Decompositions and sums over a whole tensor are
split among the threads there are, and every split rounds in its own way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["inner", "one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run what is in the context, decompositions by LAPACK, in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return (k,) the sums of products of (k, m, n) and (k, m, n), summed row by row, then over the rows."""
    found: Tensor = torch.linalg.vecdot(a, b).sum(1)
    return found
