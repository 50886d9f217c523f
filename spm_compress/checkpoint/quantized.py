"""Weights that are quantized already, told by the reasons for which they stay."""

from __future__ import annotations

import re
from collections.abc import Mapping

__all__ = ["DEQUANTIZE", "FROM", "left_out", "methods"]

FROM = "compress the model it was quantized from"
DEQUANTIZE = f"{FROM}, or dequantize this one first"
# A part of a packed weight says which before: `scales of the weight w, packed by GPTQ; ...`.
_METHOD = re.compile(r"(?:^|, )(packed (?:by|as) [^;]+|quantized already \([^;]+\)); (.*)")


def methods(kept: Mapping[str, str]) -> dict[str, list[str]]:
    """Return how tensors are quantized, `packed by GPTQ; what to do`, -> their names, the weights first.

    kept: name -> reason of tensors that stay.
    """
    found: dict[str, list[str]] = {}
    for name in sorted(kept, key=lambda each: _METHOD.match(kept[each]) is None):
        if (match := _METHOD.search(kept[name])) is not None:
            found.setdefault("; ".join(match.groups()), []).append(name)
    return found


def left_out(kept: Mapping[str, str]) -> list[str]:
    """Return a line for each way in which tensors that stay are quantized: which, how, and what to do."""
    return [
        f"{names[0]} stays as it is, {how}"
        if len(names) == 1
        else f"{len(names)} tensors stay as they are ({names[0]}, ...), {how}"
        for how, names in methods(kept).items()
    ]
