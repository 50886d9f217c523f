"""What a compression has to reach."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from spm_compress.errors import UsageError

__all__ = ["Targets", "parse_bytes", "parse_seconds"]

_BYTES = {"": 1, "b": 1, "kb": 1000, "mb": 1000**2, "gb": 1000**3, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SECONDS = {"us": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_QUANTITY = re.compile(r"([0-9]*\.?[0-9]+)\s*([a-z%]*)")


@dataclass(frozen=True)
class Targets:
    """One or several; what is not asked for is made as good as it can be.

    bytes: of the ONNX file, or, where it is below 1, a share of the float32 file's; latency: seconds of one run;
    agreement: least, of the outputs with the original's on held-out data (`Held.agreement`).
    """

    bytes: float | None = None
    latency: float | None = None
    agreement: float | None = None

    def __post_init__(self) -> None:
        if self.agreement is not None and not 0 < self.agreement <= 1:
            raise UsageError(f"`agreement` {self.agreement:g}: lies between 0 and 1, where 1 is the same answers")

    def bytes_of(self, float32: int) -> float:
        """Return the most bytes, where the float32 file has so many; infinite where none are asked for."""
        if self.bytes is None:
            return math.inf
        return self.bytes * float32 if self.bytes < 1 else self.bytes


def parse_bytes(text: str, field: str = "budget") -> float:
    """Return the bytes of '9MB', '500 kB', '1.5GiB' or '9000000', or the share below 1 of '0.1' or '10%'.

    Raises UsageError, which names the field, for anything else.
    """
    number, unit = _quantity(text, field, "9MB, or a share such as 0.1 or 10%")
    if unit == "%" and 0 < number < 100:
        return number / 100
    if unit not in _BYTES or number <= 0 or (unit and number * _BYTES[unit] < 1):
        raise UsageError(f"`{field}` {text!r}: give a size such as 9MB, or a share such as 0.1 or 10%")
    return number * _BYTES[unit]


def parse_seconds(text: str, field: str) -> float:
    """Return the seconds of '30min', '5ms', '1.5h' or '90'. Raises UsageError, which names the field, otherwise."""
    number, unit = _quantity(text, field, "30min, 90s or 5ms")
    if unit not in _SECONDS:
        raise UsageError(f"`{field}` {text!r}: give a time such as 30min, 90s or 5ms")
    return number * _SECONDS[unit]


def _quantity(text: str, field: str, example: str) -> tuple[float, str]:
    found = _QUANTITY.fullmatch(text.strip().lower())
    if found is None:
        raise UsageError(f"`{field}` {text!r}: give {example}")
    return float(found.group(1)), found.group(2)
