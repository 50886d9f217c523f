"""Which parameters of a student train, and which learning rate each has."""

from __future__ import annotations

from collections.abc import Container

from torch import nn

from spm_compress.distill.rounding import is_scale
from spm_compress.distill.settings import Trained
from spm_compress.errors import UsageError
from spm_compress.forms.dense import Dense
from spm_compress.layers.linear import FormLinear

__all__ = ["choose_trainable", "group_of"]


def choose_trainable(
    student: nn.Module, trained: Trained, storable: Container[str] | None = None, rounded: Container[str] = ()
) -> dict[str, nn.Parameter]:
    """Freeze all but what is to train; return that by name.

    The numbers of SPM layers and what is `rounded` always; of the others the biases and the parameters of norms (one
    value a feature), or all. storable: names that can be kept afterwards, None for any. Raises UsageError if there is
    no fitted weight to train.
    """
    found: dict[str, nn.Parameter] = {}
    for name, module in student.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, FormLinear):
            found.update({f"{prefix}{own}": parameter for own, parameter in module.named_parameters()})
    found.update({name: parameter for name, parameter in student.named_parameters() if name in rounded})
    if not found:
        raise UsageError("the student has no SPM layer to train; compress it first")
    for name, parameter in student.named_parameters():
        small = parameter.dim() == 1  # biases, scales of norms
        if name not in found and (small or trained is Trained.ALL) and (storable is None or name in storable):
            found[name] = parameter
    for name, parameter in student.named_parameters():
        parameter.requires_grad_(name in found)
    return found


def group_of(name: str, parameter: nn.Parameter, student: nn.Module) -> str:
    """Return the field of `Rates` that a parameter of the student, or one that trains beside it, belongs to."""
    if is_scale(name):
        return "scale"
    owner = student
    for part in name.split(".")[:-1]:
        owner = getattr(owner, part)
        if isinstance(owner, FormLinear) and parameter is not owner.bias:
            return "dense" if isinstance(owner.form, Dense) else "spm"
        if isinstance(owner, nn.Embedding):
            return "table"
    return "norm" if parameter.dim() == 1 else "dense"
