"""Messages of the library, which name its fields and functions in backticks, in the words of this command line."""

from __future__ import annotations

import re

import click

__all__ = ["with_flags"]

# Where a field or function has another name than its option, or is a command.
_OTHERS = {
    "data": "--calibration",
    "known": "--calibration",
    "rank": "--low-rank",
    "overrides": "--layer",
    "source": "--source",
    "is_sequential": "--sequential",
    "export_layers": "--layers",
    "fit_model": "spm-compress fit MODEL",
    "export_onnx": "spm-compress export --onnx out.onnx",
    "to_json": "spm-compress report --json",
}


def with_flags(message: str, group: click.Group) -> str:
    """Return a message with `field` and `function` as --field and as the command; other words in backticks stay.

    group: of all commands, whose options are looked for.
    """
    options = [each for command in group.commands.values() for each in command.params if isinstance(each, click.Option)]
    flags = {str(each.name): max(each.opts, key=len) for each in options} | _OTHERS
    return re.sub(r"`([a-z_]+)`", lambda found: flags.get(found[1], found[0]), message)
