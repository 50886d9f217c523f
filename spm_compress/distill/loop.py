"""The training itself: a student learns to answer as its teacher, without labels."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spm_compress.codecs import StoredArray
from spm_compress.distill.optimizer import made_optimizer
from spm_compress.distill.parts import masked, placed, run, samples_of
from spm_compress.distill.rounding import RoundedStudent
from spm_compress.distill.settings import DistillSettings, End, OnReport, TrainingReport
from spm_compress.distill.shared import shared_changes
from spm_compress.distill.state import State, load_optimizer, optimizer_tensors, read_state, write_state
from spm_compress.distill.teacher import Teacher
from spm_compress.distill.trainable import choose_trainable, group_of
from spm_compress.distill.transformer_blocks import Blocks
from spm_compress.errors import FitError, UsageError

__all__ = ["Distilled", "Loader", "distill"]

# Settings that change no number: a training may be resumed with others.
_WHEREVER = ("remember", "remember_disk")


class Loader(Protocol):
    """Batches: mappings of keyword arguments, tensors alone, or tuples whose first item is the model's input."""

    def __iter__(self) -> Iterator[Any]:
        """Go through the data once."""


@dataclass(frozen=True)
class Distilled:
    """What a training reached: steps taken, agreement with the teacher on the held-out data before and after.

    stored: parameter of the student -> how a file has to hold it, so that it decodes to what was judged.
    """

    steps: int
    before: float
    after: float
    loss: str
    stored: Mapping[str, StoredArray] = field(default_factory=dict)


def distill(
    teacher: nn.Module,
    student: nn.Module,
    loader: Loader,
    validation: Sequence[Any],
    settings: DistillSettings | None = None,
    *,
    watch: OnReport | None = None,
    state: Path | None = None,
    recipe: Mapping[str, Any] | None = None,
    storable: Sequence[str] | None = None,
    stored: Mapping[str, StoredArray] | None = None,
    cache: Path | None = None,
) -> Distilled:
    """Train a student, in place, to answer as its teacher; it ends with the numbers that agreed best on `validation`.

    teacher, student: modules of one architecture on one device, the student with SPMLinear layers (`compress_model`);
    both run in evaluation mode, without dropout. A table that trains must be read through its `nn.Embedding` only, or
    share its weight, as tied heads do (`shared.py`). loader: the training data, gone through as often as it takes;
    where it or its sampler has `set_epoch`, that is called before each round, as torch's DistributedSampler wants it.
    validation: batches that are looked at but never trained on. state: file to resume from and to keep the state in;
    the training resumed ends with the same numbers. recipe: what the state belongs to, besides the settings. storable:
    names of parameters that can be kept afterwards; others stay as they are. stored: parameter of the student -> how a
    file holds it now: it trains through that rounding, from the latent that it is. cache: folder in which the teacher's
    answers are kept for the next training (`remember_disk`), in memory only without one.

    Raises UsageError for a student without SPM layers, no data, answers that cannot be compared, or `relations` of
    blocks without attention; FitError where the
    loss is not finite; ArtifactError for the state of another training.
    """
    settings = settings or DistillSettings()
    parameters = choose_trainable(student, settings.trained, storable, stored or {})
    rounded = RoundedStudent(student, stored or {})
    parameters.update(rounded.ratios)
    with shared_changes(student, parameters, but=stored or {}):
        device = next(iter(parameters.values())).device
        blocks = Blocks(teacher.eval(), student.eval())
        taught = Teacher(blocks, validation, settings, device, cache)
        training = _Training(taught, student, parameters, rounded, settings)
        _run_through(training, loader, watch, state, recipe or {})
    found = rounded.fold()
    # By the student as it now is, without the matrices that its tables were trained with.
    return Distilled(training.step, training.before, training.agreement(), taught.compare.loss.value, found)


def _run_through(
    training: _Training, loader: Loader, watch: OnReport | None, state: Path | None, recipe: Mapping[str, Any]
) -> None:
    settings = training.settings
    numbers = {name: value for name, value in settings.to_json().items() if name not in _WHEREVER}
    whole = {**recipe, **numbers, "parameters": len(training.parameters)}
    if state is not None:
        training.resume(read_state(state, whole))
    began, samples = time.perf_counter(), 0
    for parts in _steps(loader, settings.accumulate, training.step):
        samples += training.take(parts)
        over = training.step == settings.steps
        looked = training.look() if over or training.step % settings.check_every == 0 else None
        if watch is not None:
            watch(training.progress(samples / max(time.perf_counter() - began, 1e-9), looked))
        if looked is not None:
            training.losses.clear()
        if over or training.looks >= settings.patience:
            break
        if state is not None and training.step % settings.keep_every == 0:
            write_state(training.state(whole), state)
    training.finish()


class _Training:
    """A student in training, and all that a state has to keep of it."""

    def __init__(
        self,
        teacher: Teacher,
        student: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        rounded: RoundedStudent,
        settings: DistillSettings,
    ) -> None:
        self.teacher, self.student = teacher, student
        self.parameters, self.rounded, self.settings = parameters, rounded, settings
        self.device = teacher.device
        # Where only tables were fitted there are no blocks.
        self.block_steps = settings.block_steps if teacher.blocks.names else 0
        self.groups = {name: group_of(name, parameter, student) for name, parameter in parameters.items()}
        self.optimizer = self._optimizer()
        self.step = self.looks = 0
        self.losses: list[float] = []
        self.before = self.best_agreement = self.agreement()
        self.best = self._copied()
        self.averaged = self._copied() if settings.average else {}

    def take(self, parts: Sequence[Any]) -> int:
        """Make one step on the batches; return how many samples they had."""
        if self.step == self.block_steps:
            # The gradients of another loss say nothing of this one's size: with the moments of the first, the second
            # begins with steps many times too long (docs/measurements.md).
            self.optimizer = self._optimizer()
        for group in self.optimizer.param_groups:
            group["lr"] = getattr(self.settings.rates, group["group"]) * self.rate
        self.optimizer.zero_grad()
        total, samples = 0.0, 0
        for part in parts:
            part = placed(part, self.device)
            with self._precision():
                loss = self.rounded(partial(self._loss, part)) / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            samples += samples_of(part)
        if not math.isfinite(total):
            raise FitError(f"the loss is not finite at step {self.step + 1}; use lower learning rates")
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), self.settings.clip)
        self.optimizer.step()
        self.losses.append(total)
        self.step += 1
        self._average()
        return samples

    def agreement(self) -> float:
        """Compare the student with its teacher on the held-out data."""
        with torch.no_grad(), self._precision():
            return self.rounded(lambda: self.teacher.agreement(self.student))

    def look(self) -> float:
        """Compare with the teacher on the held-out data; keep the numbers if they are the best so far."""
        trained = self._copied() if self.averaged else {}
        self._set(self.averaged)
        now = self.agreement()
        if now > self.best_agreement:
            self.best_agreement, self.best, self.looks = now, self._copied(), 0
        else:
            self.looks += 1
        self._set(trained)
        return now

    def finish(self) -> None:
        """Go back to the best numbers."""
        self._set(self.best)

    @property
    def rate(self) -> float:
        """Share of the highest learning rates: in each stage it rises linearly, then falls."""
        settings, blocks = self.settings, self.block_steps
        done, steps = (self.step, blocks) if self.step < blocks else (self.step - blocks, settings.steps - blocks)
        rise = min(1.0, (done + 1) / (settings.warm_up * steps + 1))
        part = done / max(1, steps)
        return rise * (1 - part if settings.end is End.LINEAR else (1 + math.cos(math.pi * part)) / 2)

    def progress(self, rows: float, looked: float | None) -> TrainingReport:
        """Say where the training stands."""
        stage = "blocks" if self.step <= self.block_steps else "outputs"
        loss = sum(self.losses) / len(self.losses)
        return TrainingReport(self.step, self.settings.steps, stage, loss, self.rate, rows, looked, self.best_agreement)

    def state(self, recipe: Mapping[str, Any]) -> State:
        """Return all that a training has to keep."""
        names = {id(parameter): name for name, parameter in self.parameters.items()}
        return State(
            recipe=recipe,
            step=self.step,
            parameters=self.parameters,
            optimizer=optimizer_tensors(self.optimizer, names),
            best=self.best,
            averaged=self.averaged,
            agreement=self.best_agreement,
            before=self.before,
            looks=self.looks,
            losses=tuple(self.losses),
        )

    def resume(self, state: State | None) -> None:
        """Go on from a state, if there is one."""
        if state is None:
            return
        self._set(state.parameters)
        load_optimizer(self.optimizer, self.parameters, state.optimizer)
        self.step, self.looks, self.losses = state.step, state.looks, list(state.losses)
        self.best = {name: x.to(self.device) for name, x in state.best.items()}
        self.averaged = {name: x.to(self.device) for name, x in state.averaged.items()}
        self.best_agreement, self.before = state.agreement, state.before

    def _loss(self, part: Any) -> Tensor:
        if self.step < self.block_steps:
            return self.teacher.blocks.distance(masked(part), lambda model: run(model, part))
        return self.teacher.distance(self.student, part)

    @torch.no_grad()
    def _average(self) -> None:
        # From few steps a mean of as many, not one that still holds the start.
        decay = min(self.settings.average, self.step / (self.step + 9))
        for name, mean in self.averaged.items():
            mean.lerp_(self.parameters[name].detach(), 1 - decay)

    @torch.no_grad()
    def _set(self, numbers: Mapping[str, Tensor]) -> None:
        for name, x in numbers.items():
            self.parameters[name].copy_(x)

    def _optimizer(self) -> torch.optim.Optimizer:
        groups: dict[str, list[nn.Parameter]] = {}
        for name, parameter in self.parameters.items():
            groups.setdefault(self.groups[name], []).append(parameter)
        return made_optimizer([{"params": own, "group": name} for name, own in groups.items()], self.settings)

    def _copied(self) -> dict[str, Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def _precision(self) -> AbstractContextManager[Any]:
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


def _steps(loader: Loader, accumulate: int, done: int) -> Iterator[list[Any]]:
    """Yield the batches of step after step, round after round, past the steps that are done."""
    skip = done * accumulate
    parts: list[Any] = []
    for epoch in itertools.count():
        shuffled: Any = loader if hasattr(loader, "set_epoch") else getattr(loader, "sampler", None)
        if hasattr(shuffled, "set_epoch"):
            shuffled.set_epoch(epoch)
        empty = True
        for part in loader:
            empty = False
            if skip:
                skip -= 1
                continue
            parts.append(part)
            if len(parts) == accumulate:
                yield parts
                parts = []
        if empty:
            raise UsageError("there is no data to train on")
