"""Shell completion of weights' names, out of the model that the command line names."""

from __future__ import annotations

from pathlib import Path

import click
from click.shell_completion import CompletionItem

__all__ = ["weight_names"]


def weight_names(context: click.Context, parameter: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Return the names of the model's matrices that begin as what is typed.

    A --factory is not called: no code runs before the command is given.
    """
    from spm_compress.checkpoint import open_source
    from spm_compress.errors import SpmError

    # An option that still lacks its value ends click's parsing, and the arguments are what it leaves over.
    named = [context.params.get("model"), *context.args]
    model = next((Path(each) for each in named if each is not None and Path(each).exists()), None)
    try:
        tensors = open_source(model, key=context.params.get("key")).tensors()
    except (SpmError, OSError):
        return []
    ending = ":" if parameter.name == "layers" else ""
    return [
        CompletionItem(f"{name}{ending}", help="x".join(map(str, info.shape)))
        for name, info in tensors.items()
        if len(info.shape) == 2 and name.startswith(incomplete)
    ]
