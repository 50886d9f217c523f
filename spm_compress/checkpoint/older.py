"""Layers of manifests of versions 1 to 5, brought to how version 6 says them.

1. `structure` was one kind of form for all: chains, a low-rank term, or both, with `canonical` as one more mixer.
2. Arrays were `<chain>.direct`, `<chain>.cross` and `<chain>.diagonals`; a low-rank term counted as one more chain.
3. An array's dtype was its codec; what raises the bias was the `shift`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from spm_compress.checkpoint.keys import BIAS_CORRECTION, usual_stem
from spm_compress.codecs import FLOAT16, FLOAT32
from spm_compress.forms.form import prefixed, under

__all__ = ["LAST_OLDER", "modern_layer"]

# The last version of a manifest that is said in another way than today's.
LAST_OLDER = 5

_ARRAYS = {"direct": "diagonal", "cross": "off_diagonal", "diagonals": "scales"}


def modern_layer(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Return an entry of an older manifest, and its tensors, as version 6 has them.

    Raises LookupError, TypeError, ValueError or AttributeError for what is no such entry.
    """
    stem = str(entry.get("stem", usual_stem(entry["names"][0])))
    structure = entry["structure"]
    chains, rank = structure["chains"], int(structure.get("rank", 0))
    own = {_array(name): tensor for name, tensor in under(tensors, stem).items()}
    shape = {name: structure[name] for name in ("in_features", "out_features")}
    spm = {"kind": "spm", **shape, **_stages(structure["mixer"]), "chains": [_chain(chain) for chain in chains]}
    low_rank = {"kind": "low_rank", **shape, "rank": rank}
    form: dict[str, Any] = spm
    correction = {name: own.pop(name) for name in (BIAS_CORRECTION,) if name in own}
    term = under(own, str(len(chains)))
    if rank and chains:
        form = {"kind": "sum", "parts": [spm, low_rank]}
        stages = {name: tensor for name, tensor in own.items() if not name.startswith(f"{len(chains)}.")}
        own = prefixed([stages, term])
    elif rank:
        form, own = low_rank, term
    codecs = {name: _codec(tensor) for name, tensor in own.items() if tensor.is_floating_point()}
    return (
        {**entry, "form": form, "codecs": codecs},
        {f"{stem}.{name}": tensor for name, tensor in {**own, **correction}.items()},
    )


def _stages(mixer: str) -> dict[str, str]:
    if mixer == "canonical":
        return {"mixer": "general", "gauge": "canonical"}
    return {"mixer": mixer, "gauge": "free"}


def _chain(chain: Mapping[str, Any]) -> dict[str, Any]:
    return {**chain, "scales": chain["diagonals"]}


def _array(name: str) -> str:
    if name == "shift":
        return BIAS_CORRECTION
    chain, _, array = name.partition(".")
    return f"{chain}.{_ARRAYS.get(array, array)}"


def _codec(tensor: Tensor) -> str:
    return {FLOAT16.dtype: FLOAT16, FLOAT32.dtype: FLOAT32}[tensor.dtype].name
