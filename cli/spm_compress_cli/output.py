"""The type of every option that names a file to write."""

from __future__ import annotations

import os
from pathlib import Path

import click

__all__ = ["OutputFile"]


class OutputFile(click.ParamType[Path]):
    """A path, unless it says by itself that it is none of a file: a `Path` no longer tells `folder/` from `folder`.

    What is on the disk is looked at by `checkpoint.keep_apart`. With --layers, a folder is what is asked for.
    """

    name = "path"

    def convert(self, value: str | Path, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path."""
        text = os.fspath(value)
        if not text:
            self.fail("is empty; name the file to write", param, ctx)
        separators = tuple(filter(None, (os.sep, os.altsep)))
        if text.endswith(separators) and not (ctx and ctx.params.get("layers")):
            self.fail(f"{text!r} is the name of a folder; name the file to write in it", param, ctx)
        return Path(text)
