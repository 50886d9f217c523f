"""Block by block: each block of the student gets what the teacher's gets, and is to give what that gives.

Teacher-forced, so no block waits for those before it to be right, and no gradient passes from one to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spm_compress.distill.outputs import Batch, squared_error
from spm_compress.errors import UsageError
from spm_compress.layers.linear import FormLinear

__all__ = ["Blocks", "chosen", "first_of"]


class Blocks:
    """The repeated blocks of a teacher and its student: the items of module lists with SPM layers in them.

    A model without such lists is taken layer by layer: each SPMLinear is a block.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module) -> None:
        names = _block_names(student)
        self.teacher, self.student, self.names = teacher, student, names
        self.of_teacher = [teacher.get_submodule(name) for name in names]
        self.of_student = [student.get_submodule(name) for name in names]

    def distance(self, batch: Batch, run: Callable[[nn.Module], Any]) -> Tensor:
        """Run the teacher; return the mean relative squared error of the student's blocks on the teacher's inputs."""
        calls: list[tuple[nn.Module, tuple[Any, ...], dict[str, Any], Tensor]] = []

        def record(student: nn.Module) -> Callable[..., None]:
            def hook(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], answer: Any) -> None:
                calls.append((student, arguments, named, first_of(answer).detach().clone()))

            return hook

        handles = [
            block.register_forward_hook(record(student), with_kwargs=True)
            for block, student in zip(self.of_teacher, self.of_student, strict=True)
        ]
        try:
            with torch.no_grad():
                run(self.teacher)
        finally:
            for handle in handles:
                handle.remove()
        errors = [squared_error(first_of(block(*args, **named)), target, batch) for block, args, named, target in calls]
        return torch.stack(errors).mean()


def _block_names(student: nn.Module) -> list[str]:
    """Return the blocks' names: the outermost items of module lists that hold SPM layers, then SPM layers in none."""
    layers = [name for name, module in student.named_modules() if isinstance(module, FormLinear)]
    items = [
        f"{name}.{index}" if name else index
        for name, module in student.named_modules()
        if isinstance(module, nn.ModuleList)
        for index, _ in module.named_children()
    ]
    found: list[str] = []
    for layer in layers:
        holders = [item for item in items if layer.startswith(f"{item}.")]
        block = min(holders, key=len, default=layer)
        if block not in found:
            found.append(block)
    return found


def chosen(names: Sequence[str], text: str, field: str) -> list[str]:
    """Return some of the names of blocks: `last`, `all`, or those of places, '0,2,-1', below 0 counted from the end.

    Raises UsageError, which says `field`, for a block that is not there.
    """
    if text in ("last", "all"):
        return list(names[-1 if text == "last" else 0 :])
    count, wanted = len(names), [int(each) for each in text.split(",")]
    missing = next((each for each in wanted if not -count <= each < count), None)
    if missing is not None:
        raise UsageError(
            f"`{field}` {missing}: there are {count} such blocks with fitted weights, 0 ({names[0]}) to {count - 1} "
            f"({names[-1]})"
        )
    return [names[i] for i in sorted({each % count for each in wanted})]


def first_of(answer: Any) -> Tensor:
    """Return what a block answers, or the first of several tensors."""
    first = answer[0] if isinstance(answer, tuple) else answer
    assert isinstance(first, Tensor)
    return first
