"""`--key`, and MODEL opened, with what has to be known of it said on stderr."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from spm_compress_cli.verbosity import Verbosity

if TYPE_CHECKING:
    from spm_compress.checkpoint import Source

__all__ = ["key_option", "open_model"]

_Command = TypeVar("_Command", bound=Callable[..., Any])


def key_option(command: _Command) -> _Command:
    """Add the option."""
    text = "Which model of a torch file that holds several: ema, nets.0, ..."
    return click.option("--key", metavar="NAME", help=text)(command)


def open_model(model: Path | None, factory: str | None, key: str | None, verbosity: Verbosity) -> Source:
    """Return the model; say which one of a file it is, and what is quantized in it, unless told to be quiet."""
    from spm_compress.checkpoint import key_of, open_source
    from spm_compress_cli.progress import message

    source = open_source(model, factory, key)
    taken = key_of(source)
    if key is None and taken is not None:
        message(f"{model}: the model in it stands under {taken!r}; the rest is left out (--key)", verbosity)
    if model is not None and _is_gguf(source):
        types = Counter(info.dtype for info in source.tensors().values() if info.is_decoded)
        if types:
            named = ", ".join(f"{count} {dtype}" for dtype, count in sorted(types.items()))
            message(f"{model}: quantized tensors ({named}) are read as the float32 that they decode to", verbosity)
    return source


def _is_gguf(source: Source) -> bool:
    from spm_compress.checkpoint.gguf_source import GgufSource

    return isinstance(getattr(source, "weights", None) or source, GgufSource)
