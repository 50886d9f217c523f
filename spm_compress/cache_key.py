"""Under which key an answer is kept: one way for every cache, so that none answers another question."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import PurePath

import numpy as np
import torch
from torch import Tensor

from spm_compress.version import __version__

__all__ = ["cache_key"]


def cache_key(**depends_on: object) -> str:
    """Return the SHA-256 (hex) of everything that an answer depends on, by name.

    Tensors and arrays count by dtype, shape and values; the versions of this program and of torch always count.
    Raises TypeError for a value of which it is not known what makes it equal to another.
    """
    digest = hashlib.sha256()
    for part in _parts({"program": __version__, "torch": torch.__version__, **depends_on}):
        digest.update(len(part).to_bytes(8, "little") + part)  # so that no two lists of parts are the same bytes
    return digest.hexdigest()


def _parts(value: object) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        yield from (str(value.dtype).encode(), repr(value.shape).encode(), np.ascontiguousarray(value).tobytes())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield type(value).__name__.encode()
        yield from _parts({field.name: getattr(value, field.name) for field in dataclasses.fields(value)})
    elif isinstance(value, Mapping):
        yield f"mapping of {len(value)}".encode()
        for name in sorted(value):
            yield str(name).encode()
            yield from _parts(value[name])
    elif isinstance(value, (list, tuple)):
        yield f"list of {len(value)}".encode()
        for each in value:
            yield from _parts(each)
    elif value is None or isinstance(value, (bool, int, float, str, PurePath, enum.Enum, torch.dtype)):
        yield f"{type(value).__name__} {value!r}".encode()
    else:
        raise TypeError(f"{type(value).__name__} has no cache key")
