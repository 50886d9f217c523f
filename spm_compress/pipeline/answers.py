"""How well the answers of an ONNX file agree with the original's, on data that nothing was fitted to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch
from torch import Tensor

from spm_compress.distill.outputs import Comparison, comparison
from spm_compress.distill.settings import Loss
from spm_compress.errors import UsageError, VerificationError
from spm_compress.export.same_inputs import run_file

__all__ = ["Answers", "Batches", "Measure", "answers_of"]

Batches = Sequence[Mapping[str, np.ndarray]]
# similarities: Spearman correlation of the similarities of all pairs of samples; answers: share of rows whose largest
# logit is the same; numbers: Spearman correlation of the one number that each sample is answered with
Measure = Literal["similarities", "answers", "numbers"]

# One pair of samples has no correlation with another.
_FEWEST = 3


@dataclass(frozen=True)
class Answers:
    """The original's answers, in the form that they are compared in.

    output: the one that is compared; way: None for numbers; summary: (rows, ...); samples: of all batches.
    """

    output: str
    way: Comparison | None
    summary: Tensor
    batches: Batches
    samples: int

    @property
    def measure(self) -> Measure:
        """What agreement is of."""
        if self.way is None:
            return "numbers"
        return "answers" if self.way.loss is Loss.LOGITS else "similarities"

    def agreement(self, path: Path, runtime: onnxruntime.InferenceSession) -> float:
        """Return how well another open file answers the same batches; 1 is perfect.

        Raises VerificationError for a file that cannot be run, or answers in another form or with NaN.
        """
        found = []
        for outputs, batch in _runs(path, runtime, self.batches):
            if self.output not in outputs:
                raise VerificationError(
                    f"{path}: has no output {self.output}; only models with the same outputs can be compared"
                )
            found.append(_summary(path, self.output, outputs[self.output], self.way, batch))
        theirs = torch.cat(found)
        if theirs.shape != self.summary.shape:
            raise VerificationError(
                f"{path}: output {self.output} has another shape; only models with the same outputs can be compared"
            )
        return _rank_correlation(theirs, self.summary) if self.way is None else self.way.agreement(theirs, self.summary)


def answers_of(path: Path, runtime: onnxruntime.InferenceSession, batches: Batches, loss: Loss | None) -> Answers:
    """Run the original, open, on all batches. loss: what to compare; None: logits where it has them, else features.

    Of a model that names neither, the first output of numbers is compared, as features if `loss` is None. Raises
    UsageError for too few samples or for inputs that are missing, VerificationError for a file that cannot be run or
    does not answer with numbers.
    """
    samples = sum(len(next(iter(batch.values()))) for batch in batches)
    if samples < _FEWEST:
        raise UsageError(f"`data` has {samples} samples to compare answers on; give {_FEWEST} or more")
    output, way, found = "", None, []
    for outputs, batch in _runs(path, runtime, batches):
        if not output:
            output, way = _compared(path, outputs, loss)
        found.append(_summary(path, output, outputs[output], way, batch))
    return Answers(output, way, torch.cat(found), batches, samples)


def _runs(
    path: Path, runtime: onnxruntime.InferenceSession, batches: Batches
) -> Iterator[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]:
    wanted = [each.name for each in runtime.get_inputs()]
    for batch in batches:
        missing = [name for name in wanted if name not in batch]
        if missing:
            raise UsageError(f"`data` lacks the input {', '.join(map(repr, missing))} that {path} needs")
        yield run_file(path, runtime, {name: batch[name] for name in wanted}), batch


def _compared(path: Path, outputs: Mapping[str, np.ndarray], loss: Loss | None) -> tuple[str, Comparison | None]:
    """Return the output to compare, and how: one whose name says what it is, else the first."""
    if not outputs:
        raise VerificationError(f"{path}: has no output of numbers to compare")
    first = next(iter(outputs))
    try:
        named = {name: torch.from_numpy(array) for name, array in outputs.items()}
        way = comparison(named, loss, temperature=1.0)
        output = next(iter(way.compared(named)))
    except UsageError:
        output, way = first, comparison(torch.from_numpy(outputs[first]), loss, temperature=1.0)
    array = outputs[output]
    is_number = array.ndim < 2 or array[0].size == 1  # its direction says nothing
    return output, None if is_number and way.loss is Loss.FEATURES else way


def _summary(
    path: Path, output: str, array: np.ndarray, way: Comparison | None, batch: Mapping[str, np.ndarray]
) -> Tensor:
    answer = torch.from_numpy(array)
    if way is None:
        summary = answer.flatten().double()
    else:
        tensors = {name: torch.from_numpy(each) for name, each in batch.items() if each.dtype.kind in "biuf"}
        # By its own name or by the one of an answer without names: `way` looks for what it was made with.
        summary = way.summary({output: answer, "output": answer}, tensors)
    if not torch.isfinite(summary).all():
        raise VerificationError(f"{path}: output {output} is not finite on the held-out data, so it cannot be compared")
    return summary


def _rank_correlation(found: Tensor, known: Tensor) -> float:
    ranks = [x.argsort().argsort().double() for x in (found, known)]
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])
