"""A hook of MkDocs: puts what `--help` prints of every command in the place of <!-- commands -->.

Every word comes from click: a page written by hand would drift from the program. (mkdocs-click 0.9 prints a sentinel of
newer clicks as default, and joins the lines of examples.)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from spm_compress_cli.main import cli

MARK = "<!-- commands -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Return the page with the commands on it."""
    del kwargs
    return markdown.replace(MARK, "\n".join(written())) if MARK in markdown else markdown


def written() -> Iterator[str]:
    """Yield the lines of all commands: the bare command first."""
    top = click.Context(cli, info_name="spm-compress", max_content_width=100)
    yield from described(cli, top)
    for name, command in cli.commands.items():
        yield from described(command, click.Context(command, info_name=name, parent=top))


def described(command: click.Command, context: click.Context) -> Iterator[str]:
    """Yield a command's heading, usage, text and options."""
    yield from (
        f"## {context.command_path}",
        "",
        "```text",
        command.get_usage(context).removeprefix("Usage: "),
        "```",
        "",
    )
    for paragraph in (command.help or "").split("\n\n"):
        lines = [line.strip() for line in paragraph.strip().split("\n")]
        if lines[0] == "\b":  # click's mark of lines that stay as they are
            yield from ("```text", *lines[1:], "```", "")
        else:
            yield from (" ".join(lines), "")
    yield from ("| option | |", "|---|---|")
    for parameter in command.get_params(context):
        record = parameter.get_help_record(context)
        if record is not None:
            name, text = (part.replace("|", "\\|") for part in record)
            yield f"| `{name}` | {text} |"
    yield ""
