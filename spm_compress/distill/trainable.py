"""Which parameters of a student train."""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from spm_compress.distill.settings import Trained
from spm_compress.errors import UsageError
from spm_compress.layers.linear import FormLinear

__all__ = ["choose_trainable"]


def choose_trainable(
    student: nn.Module, trained: Trained, storable: Container[str] | None = None
) -> dict[str, nn.Parameter]:
    """Freeze all but what is to train; return that by name.

    The numbers of SPM layers always; of the others the biases and the parameters of norms (one value a feature), or
    all. storable: names that can be kept afterwards, None for any. Raises UsageError if there is no SPM layer.
    """
    found: dict[str, nn.Parameter] = {}
    for name, module in student.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, FormLinear):
            found.update({f"{prefix}{own}": parameter for own, parameter in module.named_parameters()})
    if not found:
        raise UsageError("the student has no SPM layer to train; compress it first")
    for name, parameter in student.named_parameters():
        small = parameter.dim() == 1  # biases, scales of norms
        if name not in found and (small or trained is Trained.ALL) and (storable is None or name in storable):
            found[name] = parameter
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in found)
    return found
