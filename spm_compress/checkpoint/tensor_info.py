"""What is known of a stored tensor before its values are read."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["DTYPES", "ITEM_BYTES", "Role", "TensorInfo", "dtype_name", "input_first"]

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Q8 and Q4 are integers with a scale, which reading turns into float32.
ITEM_BYTES: Mapping[str, float] = {**{name: dtype.itemsize for name, dtype in DTYPES.items()}, "Q8": 1, "Q4": 0.5}


_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Return safetensors' name of a floating-point dtype that can be fitted, torch's name of any other."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


# transformers' Conv1D, in the model families that are made of it.
_CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")


def input_first(names: Iterable[str], config: Mapping[str, Any] | None) -> frozenset[str]:
    """Return which weights of a Hugging Face model are stored as (in_features, out_features)."""
    if (config or {}).get("model_type") not in _CONV1D_FAMILIES:
        return frozenset()
    return frozenset(name for name in names if _CONV1D.search(name))


class Role(enum.Enum):
    """What a model does with a tensor.

    MAP: multiplies by it; TABLE: looks its rows up, and may multiply by it too; QUANTIZED: multiplies by what it
    decodes to; OTHER: anything else.
    """

    MAP = "map"
    TABLE = "table"
    QUANTIZED = "quantized"
    OTHER = "other"


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a stored tensor; dtype in safetensors' names (F32, BF16, I64, ...), or Q8 and Q4.

    role: None where the source does not say; use: how the model uses it in words, the reason if it is no map.
    """

    shape: tuple[int, ...]
    dtype: str
    role: Role | None = None
    use: str = ""

    @property
    def is_floating(self) -> bool:
        """Whether the values are floating-point numbers once read."""
        return self.dtype in ITEM_BYTES

    @property
    def bytes(self) -> int:
        """Bytes that the values of a floating-point tensor occupy."""
        return int(torch.Size(self.shape).numel() * ITEM_BYTES[self.dtype])
