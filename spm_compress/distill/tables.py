"""Tables that one embedding alone reads: what is done to the rows that are read is done to the table."""

from __future__ import annotations

from collections import Counter

from torch import nn

__all__ = ["lone_tables"]


def lone_tables(student: nn.Module) -> dict[str, nn.Embedding]:
    """Return name of a parameter -> the embedding whose weight it is, of those that belong to no other module.

    A table that also makes logits would have to change there too; one with `max_norm` changes as it is read.
    """
    users = Counter(id(own) for module in student.modules() for own in module.parameters(recurse=False))
    return {
        f"{name}.weight" if name else "weight": module
        for name, module in student.named_modules()
        if isinstance(module, nn.Embedding) and users[id(module.weight)] == 1 and module.max_norm is None
    }
