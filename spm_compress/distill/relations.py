"""The relations of attention: how the queries of a text are to each other, its keys, its values.

MiniLMv2 (Wang, Bao, Huang, Dong, Wei, arXiv 2012.15828): of each of the three the vectors are cut into relation heads,
R = softmax(A A^T / sqrt(d)) over real tokens says how near each token's is to every other's, and the divergence
KL(R of the teacher || R of the student) is averaged over real tokens and heads, and added up over the three.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from spm_compress.distill.outputs import Batch
from spm_compress.errors import UsageError

__all__ = ["projections", "relation_distance"]

# What the linear layers of one attention are called, and such as make all three in one, one third after the other. (Of
# `query_key_value` the thirds are those of every head, or not, from model to model.)
_THREE = (
    ("query", "key", "value"),
    ("q_proj", "k_proj", "v_proj"),
    ("q_lin", "k_lin", "v_lin"),
    ("query_proj", "key_proj", "value_proj"),
    ("q", "k", "v"),
    ("to_q", "to_k", "to_v"),
    ("wq", "wk", "wv"),
    ("linear_q", "linear_k", "linear_v"),
)
_FUSED = ("c_attn", "qkv", "Wqkv")
# Width of a relation head, whatever that of the model's own: more and narrower ones did better, 16 in the paper.
_WIDTH = 16
# Of a score that does not count: nothing is left of it in float32, and it can still be subtracted.
_NOTHING = -1e9


def projections(block: nn.Module) -> dict[str, str]:
    """Return what makes queries, keys and values of a block's first attention: kind -> name of a layer inside.

    The kind of a layer that makes all three is `fused`. Nothing for a block that has none of the known names.
    """
    for inside, module in block.named_modules():
        prefix = f"{inside}." if inside else ""
        children = dict(module.named_children())
        for three in _THREE:
            if set(three) <= set(children):
                kinds = ("query", "key", "value")
                return {kind: f"{prefix}{own}" for kind, own in zip(kinds, three, strict=True)}
        fused = next((own for own in _FUSED if own in children and _makes_three(children[own])), None)
        if fused is not None:
            return {"fused": f"{prefix}{fused}"}
    return {}


def relation_distance(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Return the divergence of the relations, summed over queries, keys and values, the mean over blocks.

    student, teacher: KIND.BLOCK -> (samples, tokens, features), kinds as of `projections`. Raises UsageError where
    there are no tokens.
    """
    found = []
    for name, x in student.items():
        parts = 3 if name.startswith("fused.") else 1
        pairs = zip(x.float().chunk(parts, -1), teacher[name].float().chunk(parts, -1), strict=True)
        found += [_divergence(one, target, batch) for one, target in pairs]
    return 3 * torch.stack(found).mean()


def _divergence(x: Tensor, target: Tensor, batch: Batch) -> Tensor:
    if x.dim() < 3:
        raise UsageError(f"`relations`: the queries of a batch are {tuple(x.shape)}, which has no tokens to relate")
    mask = batch.get("attention_mask")
    real = mask != 0 if mask is not None and mask.shape == x.shape[:-1] else None
    between = F.kl_div(_relations(x, real), _relations(target, real), log_target=True, reduction="none")
    of_tokens = between.sum(-1).mean(-2)  # (samples, heads, tokens, tokens) -> (samples, tokens)
    return (of_tokens if real is None else of_tokens[real]).mean()


def _relations(x: Tensor, real: Tensor | None) -> Tensor:
    """Return log R, (..., tokens, features) -> (..., heads, tokens, tokens); real: (samples, tokens)."""
    filled = F.pad(x, (0, -x.shape[-1] % _WIDTH))  # zeros add nothing to a product
    heads = filled.reshape(*x.shape[:-1], -1, _WIDTH).transpose(-2, -3)
    scores: Tensor = heads @ heads.mT / math.sqrt(_WIDTH)
    if real is not None:
        scores = scores.masked_fill(~real[:, None, None, :], _NOTHING)
    return scores.log_softmax(-1)


def _makes_three(layer: nn.Module) -> bool:
    into, out = getattr(layer, "in_features", None), getattr(layer, "out_features", None)
    return isinstance(into, int) and out == 3 * into
