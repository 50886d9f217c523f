"""Which tensors are replaced, and for every other one the reason why not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from spm_compress.checkpoint.neighbours import refusal
from spm_compress.checkpoint.quantized import FROM
from spm_compress.checkpoint.tensor_info import Role, TensorInfo
from spm_compress.errors import UsageError, near_misses

__all__ = ["EXCLUDED", "NONE", "NOT_INCLUDED", "Selection", "check_patterns", "is_lookup", "require_model", "select"]

# As the only pattern of `include`: no map gets another form, and what stays may be stored in fewer bits.
NONE = "none"

NOT_INCLUDED, EXCLUDED = "not included", "excluded"

# Tables that are looked up by row, not multiplied with, by the names that model families give them.
_LOOKUP = re.compile(
    r"(^|[._])(emb|embed|embeds|embedding|embeddings|embed_tokens|embed_positions|wte|wpe|pos_embed|"
    r"relative_attention_bias|tok_embeddings|position_ids|class_embedding|embd|token_types)([._]|$)"
)
_COMPLEX = ("C64", "C128", "complex")


@dataclass(frozen=True)
class Selection:
    """names to fit, in order, and name -> reason for every tensor that stays."""

    fitted: tuple[str, ...]
    kept: Mapping[str, str]


def select(
    tensors: Mapping[str, TensorInfo],
    *,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    min_features: int = 32,
    parts: Mapping[str, str] | None = None,
) -> Selection:
    """Choose the dense maps among `tensors` by dtype, shape, name and the given globs.

    include: only names that match one of these; none given means all. exclude: never these. Both match
    whole tensor names, with * ? [] as in the shell. A table that is looked up, or a weight that is quantized already,
    is taken only if it is included by its whole name. A weight narrower than min_features on either side stays. parts:
    name -> reason for tensors that are a part of something else (`neighbours.parts`), which stay. Raises UsageError for
    a glob without a match.
    """
    if include != (NONE,):
        check_patterns("`include`", include, tensors)
    check_patterns("`exclude`", exclude, tensors)
    fitted, kept = [], {}
    for name, info in tensors.items():
        is_excluded = any(fnmatchcase(name, pattern) for pattern in exclude)
        part = None if is_excluded else (parts or {}).get(name)
        reason = part or _reason_to_keep(name, info, include, exclude, min_features)
        if reason:
            kept[name] = reason
        else:
            fitted.append(name)
    return Selection(tuple(fitted), kept)


def check_patterns(option: str, patterns: Iterable[str], names: Iterable[str]) -> None:
    """Raise UsageError, with near misses, for a pattern that matches none of the names."""
    known = list(names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in known):
            raise UsageError(f"{option} {pattern!r} matches no tensor{near_misses(pattern, known)}")


def require_model(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    parts: Mapping[str, str],
    selection: Selection,
    *,
    is_any_left: bool,
) -> None:
    """Raise UsageError, with what to do first, for an adapter, and where all weights are parts of something else.

    is_any_left: whether a weight is fitted or stored in fewer bits.
    """
    told = {name: reason for name, reason in parts.items() if selection.kept.get(name) == reason}
    is_asked = EXCLUDED in selection.kept.values()  # what else there was stays by request
    line = refusal(tensors, told, selection.kept, is_any_left=is_any_left or is_asked)
    if line is not None:
        raise UsageError(f"{path}: {line}")


def _reason_to_keep(
    name: str, info: TensorInfo, include: tuple[str, ...], exclude: tuple[str, ...], min_features: int
) -> str | None:
    if not info.is_floating:
        return info.use or _kind_of(info.dtype)
    if info.role is Role.OTHER:
        return info.use
    if len(info.shape) > 3 and name.endswith("weight"):
        return f"{len(info.shape)}-D, by its shape a kernel of a convolution wider than 1x1, not a matrix"
    if len(info.shape) != 2:
        return f"{len(info.shape)}-D, not a matrix"
    if any(fnmatchcase(name, pattern) for pattern in exclude):
        return EXCLUDED
    if info.role is Role.QUANTIZED and name not in include:
        return info.use
    if include and not any(fnmatchcase(name, pattern) for pattern in include):
        return NOT_INCLUDED
    if info.role is Role.TABLE and name not in include:
        return info.use
    if is_lookup(name, info) and name not in include:
        return "a lookup table by its name"
    if min(info.shape) < min_features:
        return f"narrower than {min_features} features"
    return None


def is_lookup(name: str, info: TensorInfo) -> bool:
    """Return whether rows of a tensor are looked up, by its role, or by its name where that is not known."""
    return info.role is Role.TABLE or (info.role is None and bool(_LOOKUP.search(name)))


def _kind_of(dtype: str) -> str:
    """Return what numbers a dtype stands for that is not fitted, by safetensors' name or torch's."""
    if dtype.startswith(_COMPLEX):
        return f"{dtype}: complex numbers; left as it is"
    if dtype.startswith(("F", "float")):
        return f"quantized already ({dtype}); {FROM}"
    return f"{dtype}: whole numbers, perhaps of packed weights; left as it is"
