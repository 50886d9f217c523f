"""What a model answers, and how far the student's answers are from the teacher's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from spm_compress.distill.settings import Loss
from spm_compress.errors import UsageError

__all__ = ["Batch", "Comparison", "comparison", "squared_error"]

Batch = Mapping[str, Tensor]


class Comparison(Protocol):
    """One way to compare answers."""

    @property
    def loss(self) -> Loss:
        """Its name."""

    def compared(self, answer: Any) -> dict[str, Tensor]:
        """Return what of an answer `distance` needs; it takes this in the answer's place."""

    def distance(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        """Return the loss, a scalar that can be differentiated with respect to the student's answer."""

    def summary(self, answer: Any, batch: Batch) -> Tensor:
        """Return what of an answer is kept to compute the agreement: (samples, ...)."""

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Return how well summaries agree; 1 is perfect, higher is better."""


def comparison(answer: Any, loss: Loss | None, temperature: float) -> Comparison:
    """Choose by what a model answers: `logits` if it has them, else features.

    Raises UsageError for an answer with neither, or without what `loss` needs.
    """
    found = _named(answer)
    if loss is None:
        loss = Loss.LOGITS if "logits" in found else Loss.FEATURES
    known = _LOGITS if loss is Loss.LOGITS else _FEATURES
    name = next((each for each in known if each in found), known[0])
    if name not in found:
        raise UsageError(
            f"the model answers with {', '.join(found) or 'no tensor'}, none of which `loss` {loss.value} can compare"
        )
    return _Logits(name, temperature) if loss is Loss.LOGITS else _Features(name)


def squared_error(x: Tensor, target: Tensor, batch: Batch) -> Tensor:
    """Return ||x - target||^2 / ||target||^2 over real tokens; x, target: (samples, ...)."""
    difference, whole = (x - target).square(), target.square()
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == x.shape[:-1]:
        difference, whole = difference[mask != 0], whole[mask != 0]
    return difference.sum() / whole.sum().clamp(min=torch.finfo(whole.dtype).tiny)


# An answer without names is "output", and what it is the user says.
_LOGITS = ("logits", "output")
_FEATURES = ("last_hidden_state", "hidden_states", "image_embeds", "text_embeds", "output")


def _named(answer: Any) -> dict[str, Tensor]:
    if isinstance(answer, Tensor):
        return {"output": answer}
    if isinstance(answer, (tuple, list)) and answer and isinstance(answer[0], Tensor):  # the rest is not compared
        return {"output": answer[0]}
    named = answer.items() if isinstance(answer, Mapping) else ()
    return {name: value for name, value in named if isinstance(value, Tensor)}


@dataclass(frozen=True)
class _Features:
    """Cosine of the pooled features, the matrix of similarities between samples, and every token's features."""

    name: str
    loss: Loss = Loss.FEATURES

    def compared(self, answer: Any) -> dict[str, Tensor]:
        return {self.name: _named(answer)[self.name]}

    def distance(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        x, target = _named(student)[self.name].float(), _named(teacher)[self.name].float()
        a, b = _pooled(x, batch), _pooled(target, batch)
        cosine = (1 - (a * b).sum(1)).mean()
        similarity = (a @ a.T - b @ b.T).square().mean()
        return cosine + similarity + squared_error(x, target, batch)  # other weights: docs/measurements.md

    def summary(self, answer: Any, batch: Batch) -> Tensor:
        return _pooled(_named(answer)[self.name].float(), batch)

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Spearman correlation of the similarities of all pairs."""
        pairs = torch.triu_indices(len(teacher), len(teacher), 1).unbind()
        ranks = [(x @ x.T)[pairs].argsort().argsort().double() for x in (student, teacher)]
        return float(torch.corrcoef(torch.stack(ranks))[0, 1])


def _pooled(features: Tensor, batch: Batch) -> Tensor:
    """Average features (samples, ..., n) over real tokens, scale to length one."""
    if features.dim() > 2:
        features = features.flatten(1, -2)
        mask = batch.get("attention_mask")
        if mask is not None and mask.shape == features.shape[:-1]:
            weights = mask[:, :, None].to(features)
            features = (features * weights).sum(1) / weights.sum(1).clamp(min=1)
        else:
            features = features.mean(1)
    return F.normalize(features, dim=1)


@dataclass(frozen=True)
class _Logits:
    """Kullback-Leibler divergence of the softened distributions (Hinton, Vinyals, Dean, arXiv 1503.02531)."""

    name: str
    temperature: float
    loss: Loss = Loss.LOGITS

    def compared(self, answer: Any) -> dict[str, Tensor]:
        return {self.name: _named(answer)[self.name]}

    def distance(self, student: Any, teacher: Any, batch: Batch) -> Tensor:
        x, target = (_rows(_named(each)[self.name].float(), batch) / self.temperature for each in (student, teacher))
        divergence = F.kl_div(x.log_softmax(-1), target.log_softmax(-1), log_target=True, reduction="batchmean")
        return divergence * self.temperature**2

    def summary(self, answer: Any, batch: Batch) -> Tensor:
        return _rows(_named(answer)[self.name], batch).argmax(-1)

    def agreement(self, student: Tensor, teacher: Tensor) -> float:
        """Share of rows with the same largest logit."""
        return float((student == teacher).double().mean())


def _rows(logits: Tensor, batch: Batch) -> Tensor:
    """Return logits (..., classes) as rows, without those of padding."""
    mask = batch.get("attention_mask")
    if mask is not None and mask.shape == logits.shape[:-1]:
        return logits[mask != 0]
    return logits.flatten(0, -2)
