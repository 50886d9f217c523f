"""What is known of a stored tensor before its values are read."""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

__all__ = [
    "DECODED",
    "DTYPES",
    "ITEM_BYTES",
    "MOST_KERNEL_DIMS",
    "Role",
    "TensorInfo",
    "as_matrix",
    "bias_of",
    "dtype_name",
    "input_first",
]

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
# Q8 and Q4 are integers with a scale, as ONNX has them. The others are GGUF's: bytes of a block by its weights.
# Reading turns them all into float32.
DECODED: Mapping[str, float] = {
    **{"Q8": 1, "Q4": 0.5},
    **{"Q4_0": 18 / 32, "Q4_1": 20 / 32, "Q5_0": 22 / 32, "Q5_1": 24 / 32, "Q8_0": 34 / 32, "Q8_1": 40 / 32},
    **{"Q2_K": 84 / 256, "Q3_K": 110 / 256, "Q4_K": 144 / 256, "Q5_K": 176 / 256, "Q6_K": 210 / 256, "Q8_K": 292 / 256},
    **{"IQ1_S": 50 / 256, "IQ1_M": 56 / 256, "IQ2_XXS": 66 / 256, "IQ2_XS": 74 / 256, "IQ2_S": 82 / 256},
    **{"IQ3_XXS": 98 / 256, "IQ3_S": 110 / 256, "IQ4_XS": 136 / 256, "IQ4_NL": 18 / 32},
    **{"TQ1_0": 54 / 256, "TQ2_0": 66 / 256, "MXFP4": 17 / 32, "NVFP4": 36 / 64, "Q1_0": 18 / 128},
}
ITEM_BYTES: Mapping[str, float] = {**{name: dtype.itemsize for name, dtype in DTYPES.items()}, **DECODED}


_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """Return safetensors' name of a floating-point dtype that can be fitted, torch's name of any other."""
    return _NAMES.get(dtype, str(dtype).removeprefix("torch."))


def bias_of(weight: str) -> str:
    """Return the name of the bias beside a weight, if it has one: `in_proj_bias` for `in_proj_weight`."""
    return f"{weight.removesuffix('weight')}bias"


# Of the convolutions that torch has.
MOST_KERNEL_DIMS = 3

# transformers' Conv1D, in the model families that are made of it.
_CONV1D_FAMILIES = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")


def input_first(names: Iterable[str], config: Mapping[str, Any] | None) -> frozenset[str]:
    """Return which weights of a Hugging Face model, or of a part of one, are stored as (in_features, out_features)."""
    parts = {f"{name}.": part for name, part in (config or {}).items() if isinstance(part, Mapping)}
    parts[""] = config or {}
    prefixes = tuple(prefix for prefix, part in parts.items() if part.get("model_type") in _CONV1D_FAMILIES)
    return frozenset(name for name in names if name.startswith(prefixes) and _CONV1D.search(name))


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
    """Shape and dtype of a stored tensor; dtype in safetensors' names (F32, BF16, I64, ...), or one of DECODED.

    role: None where the source does not say; use: how the model uses it in words, the reason if it is no map.
    kernel_dims: axes of size 1 that the source has behind (out, in): those of a 1x1 convolution.
    """

    shape: tuple[int, ...]
    dtype: str
    role: Role | None = None
    use: str = ""
    kernel_dims: int = 0

    @property
    def is_floating(self) -> bool:
        """Whether the values are floating-point numbers once read."""
        return self.dtype in ITEM_BYTES

    @property
    def is_decoded(self) -> bool:
        """Whether the values are stored in fewer bits and become float32 once read."""
        return self.dtype in DECODED

    @property
    def bytes(self) -> int:
        """Bytes that the values of a floating-point tensor occupy where they are stored."""
        return int(torch.Size(self.shape).numel() * ITEM_BYTES[self.dtype])


def as_matrix(name: str, info: TensorInfo) -> TensorInfo:
    """Return the weight of a 1x1 convolution as the matrix (out, in) that it multiplies by, any other tensor as it is.

    One of several groups is stored as such a matrix too, but no product with it is computed: a graph says so.
    """
    ones = info.shape[2:]
    is_kernel = 1 <= len(ones) <= MOST_KERNEL_DIMS and all(size == 1 for size in ones) and name.endswith("weight")
    if not is_kernel or info.role is Role.OTHER:
        return info
    return replace(info, shape=info.shape[:2], kernel_dims=len(ones))
