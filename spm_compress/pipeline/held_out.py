"""Data in three parts: what to fit to, what to train on, and what to judge by, which nothing else sees."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file
from torch import Tensor

from spm_compress.cache_key import cache_key
from spm_compress.calibration.data import Batch, read_batches
from spm_compress.calibration.texts import dataset_texts
from spm_compress.checkpoint.files import make_folder, sha256_of, write_whole
from spm_compress.checkpoint.source import Source
from spm_compress.distill.outputs import Comparison, comparison, squared_error
from spm_compress.distill.settings import Loss
from spm_compress.errors import UsageError

__all__ = ["Held", "Parts", "held", "split"]

# Every fifth sample up to so many is held out; so many of the others show what the layers' inputs are.
_EVERY, _HELD, _FITTED = 5, 400, 512
# Samples that the harm of one weight is measured on, and of a batch.
_PROBED, _BATCH = 48, 16
# By which a sum of float32 probabilities may differ from one.
_SUM = 1e-3

Answers = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Parts:
    """Files of calibration data. trained: all but what is held out; fitted: some of these."""

    fitted: Path
    trained: Path
    held: Path


def split(source: Source, data: Path, folder: Path) -> Parts:
    """Split calibration data into files in a folder; the same data gives the same files.

    Raises as `read_batches`, and UsageError for fewer than ten samples.
    """
    read_batches(source, data)  # says what is wrong with it
    take, count, suffix = _samples(data)
    if count < 2 * _EVERY:
        raise UsageError(f"{data}: {count} samples are too few to fit to some and judge by others; give ten or more")
    order = np.random.default_rng(0).permutation(count)
    judged = min(_HELD, count // _EVERY)
    held, others = np.sort(order[:judged]), np.sort(order[judged:])
    fitted = np.sort(order[judged : judged + _FITTED])
    digest = cache_key(data=data.name if data.is_dir() else sha256_of(data), count=count)[:16]
    make_folder(folder)
    parts = Parts(*(folder / f"{digest}.{part}{suffix}" for part in ("fitted", "trained", "held")))
    for path, chosen in ((parts.fitted, fitted), (parts.trained, others), (parts.held, held)):
        if not path.exists():
            with write_whole(path) as temporary:
                take(chosen, temporary)
    return parts


def _samples(data: Path) -> tuple[Callable[[np.ndarray, Path], None], int, str]:
    """Return a function that writes samples by number, how many there are, and the suffix of such a file."""
    if data.is_dir() or data.suffix == ".txt":
        texts = list(dataset_texts(data)) if data.is_dir() else data.read_text(encoding="utf-8").splitlines()
        lines = [" ".join(text.split()) for text in texts if text.strip()]

        def write(chosen: np.ndarray, path: Path) -> None:
            path.write_text("".join(f"{lines[i]}\n" for i in chosen), encoding="utf-8")

        return write, len(lines), ".txt"
    arrays = dict(np.load(data)) if data.suffix == ".npz" else load_file(data)

    def save(chosen: np.ndarray, path: Path) -> None:
        with path.open("wb") as file:
            np.savez(file, **{name: array[chosen] for name, array in arrays.items()})

    return save, len(next(iter(arrays.values()))), ".npz"


@dataclass(frozen=True)
class Held:
    """Held-out samples and what the original answers: what every candidate and every file is compared with."""

    batches: Sequence[Batch]
    answers: Sequence[Answers]
    compare: Comparison

    @property
    def probed(self) -> int:
        """How many of the batches the harm of a weight is measured on."""
        return min(len(self.batches), max(1, _PROBED // _BATCH))

    def harm(self, answer: Callable[[Batch], Answers]) -> float:
        """Return ||y - y0||^2 / ||y0||^2 of what is compared of the outputs, over the first batches, at most 1e6."""
        missed = whole = 0.0
        for batch, known in zip(self.batches[: self.probed], self.answers, strict=False):
            target = self._compared(known)
            weight = float(target.square().sum())
            found = float(squared_error(self._compared(answer(batch)), target, _tensors(batch)))
            missed += weight * (found if np.isfinite(found) else 1e6)
            whole += weight
        return min(missed / whole if whole else 0.0, 1e6)

    def agreement(self, answer: Callable[[Batch], Answers]) -> float:
        """Return the agreement with the original's answers over all batches; 1 is the same.

        Share of equal answers of what has logits or ends in a softmax, rank correlation of the samples' similarities of
        all else.
        """
        pairs = [
            (self._summary(answer(batch), batch), self._summary(known, batch))
            for batch, known in zip(self.batches, self.answers, strict=True)
        ]
        ours, theirs = (torch.cat([pair[i] for pair in pairs]) for i in (0, 1))
        return self.compare.agreement(ours.nan_to_num(), theirs)

    def _compared(self, answer: Answers) -> Tensor:
        return next(iter(self.compare.compared(_tensors(_named(answer))).values())).float()

    def _summary(self, answer: Answers, batch: Batch) -> Tensor:
        return self.compare.summary(_tensors(_named(answer)), _tensors(batch))


def held(source: Source, data: Path, answer: Callable[[Batch], Answers]) -> Held:
    """Return the held-out samples of a file with what the original answers. Raises as `read_batches`, `comparison`."""
    batches = read_batches(source, data, _BATCH)
    answers = [answer(batch) for batch in batches]
    first = _tensors(_named(answers[0]))
    loss = Loss.LOGITS if _are_probabilities(next(iter(first.values()))) else None
    return Held(batches, answers, comparison(first, loss, 1.0))


def _are_probabilities(answer: Tensor) -> bool:
    """Return whether rows are a softmax, as graphs of classifiers end, whatever they call it."""
    return bool((answer >= 0).all()) and bool(((answer.double().sum(-1) - 1).abs() < _SUM).all())


def _named(answer: Answers) -> Answers:
    """Return answers under names that can be compared: what has none of them is "output"."""
    known = ("logits", "last_hidden_state", "image_embeds", "text_embeds", "output")
    return answer if any(name in answer for name in known) else {"output": next(iter(answer.values()))}


def _tensors(arrays: Answers) -> dict[str, Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}
