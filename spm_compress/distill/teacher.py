"""What a student learns from: its teacher's answers, made once or found again."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spm_compress.distill.answers_on_disk import AnswersOnDisk
from spm_compress.distill.hidden import tapped
from spm_compress.distill.inside import Inside
from spm_compress.distill.outputs import Comparison, comparison
from spm_compress.distill.parts import masked, placed, run
from spm_compress.distill.settings import DistillSettings
from spm_compress.distill.teacher_cache import TeacherCache
from spm_compress.distill.teacher_digest import teacher_digest
from spm_compress.distill.transformer_blocks import Blocks
from spm_compress.errors import UsageError

__all__ = ["Teacher"]


class Teacher:
    """A teacher's answers, and what a student's are to them; both run in evaluation mode on the teacher's device.

    validation: batches on that device that are never trained on; known: `Comparison.summary` of all answers to them;
    compare: by the outputs, inside: by what blocks answer. cache: folder for answers (`distill`).
    """

    def __init__(
        self,
        blocks: Blocks,
        validation: Sequence[Any],
        settings: DistillSettings,
        device: torch.device,
        cache: Path | None,
    ) -> None:
        if not validation:
            raise UsageError("nothing is held out to judge the training by; give more data or a larger share")
        self.blocks, self.device = blocks, device
        self.inside = Inside(blocks, settings)
        self._module, self._settings = blocks.teacher, settings
        disk = self._on_disk(cache)
        held_out = TeacherCache(0, disk, "held out")
        self.validation = [placed(part, device) for part in validation]
        answers = [held_out.to(part, partial(self._compared, part)) for part in self.validation]
        self.compare: Comparison = comparison(answers[0], settings.loss, settings.temperature)
        pairs = zip(answers, self.validation, strict=True)
        self.known = torch.cat([self.compare.summary(answer, masked(part)) for answer, part in pairs])
        self._cache = TeacherCache(round(settings.remember * 2**30), disk, "trained on")

    def distance(self, student: nn.Module, part: Any) -> Tensor:
        """Run a student on a batch; return the loss of what it answers and of what is compared inside it."""
        target = self._cache.to(part, partial(self._target, part))
        with tapped(self.inside.of_student) as inside:
            answer = run(student, part)
        loss = self.compare.distance(answer, target, masked(part))
        return loss + self.inside.distance(inside, target, masked(part))

    def agreement(self, student: nn.Module) -> float:
        """Return how well a student's answers agree on what is held out; higher is better."""
        found = [self.compare.summary(run(student, part), masked(part)) for part in self.validation]
        return self.compare.agreement(torch.cat(found), self.known)

    @torch.no_grad()
    def _target(self, part: Any) -> dict[str, Tensor]:
        """Return what the student's answer is compared with, in memory of its own."""
        with tapped(self.inside.of_teacher) as inside:
            compared = self.compare.compared(run(self._module, part))
        return {name: x.clone() for name, x in {**compared, **inside}.items()}

    @torch.no_grad()
    def _compared(self, part: Any) -> dict[str, Tensor]:
        answer = run(self._module, part)
        return comparison(answer, self._settings.loss, self._settings.temperature).compared(answer)

    def _on_disk(self, cache: Path | None) -> AnswersOnDisk | None:
        room = round(self._settings.remember_disk * 2**30)
        if cache is None or room == 0:
            return None
        teacher = teacher_digest(self._module, self.device, self._settings.loss, self.inside.names)
        return AnswersOnDisk(cache / "teacher", teacher, room, self.device)
