"""The same bits whatever the number of threads: products and sums along one axis are, these are not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["inner", "one_thread"]


@contextmanager
def one_thread() -> Iterator[None]:
    """Run decompositions in one thread: LAPACK splits them by the number there is, and rounds accordingly."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return (k,) the sums of products of (k, m, n) and (k, m, n), row by row: a sum over all is split by threads."""
    found: Tensor = torch.linalg.vecdot(a, b).sum(1)
    return found
