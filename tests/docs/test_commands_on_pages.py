"""Every `spm-compress` line on a page or in the README is one that the command line takes."""

from __future__ import annotations

import re

import click
import pytest
from pages import arguments_of, markdown_pages

from spm_compress_cli.main import cli


def written_commands() -> list[tuple[str, str]]:
    """Return (page and line, command) for every line of code that begins with `spm-compress` or `$ spm-compress`."""
    found = []
    for page in markdown_pages():
        inside = False
        lines = page.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines, 1):
            if line.lstrip().startswith("```"):
                inside = not inside
            match = re.match(r"( {4,}|\$ | *)?(spm-compress .*)$", line)
            if match and (inside or line.startswith("    ")):
                found.append((f"{page.name}:{number}", match[2]))
            # in running text: those with options; without, it is the command's name
            found += [(f"{page.name}:{number}", each) for each in re.findall(r"`(spm-compress \w[^`]* --[^`]*)`", line)]
    return found


def check(arguments: list[str]) -> None:
    """Raise what click raises for a command line that it does not take; nothing is run."""
    if not arguments or arguments[0].startswith("-"):
        return
    name, *rest = arguments
    command = cli.commands.get(name)
    if command is None:
        raise click.UsageError(f"no command {name}")
    words = [re.sub(r"  +.*", "", word) for word in rest]
    words = [word for word in words if word not in ("->", "...")]
    if {"--config", "--from"} & set(words):  # files that the page makes, with what else the command needs
        command.make_parser(click.Context(command)).parse_args(words)
    else:
        command.make_context(name, words, resilient_parsing=False)


def test_lines_are_found() -> None:
    pages = {place.partition(":")[0] for place, _ in written_commands()}
    assert {"README.md", "tutorial.md", "deploy.md", "measurements.md"} <= pages


@pytest.mark.parametrize(("place", "command"), written_commands())
def test_a_command_on_a_page_is_one_that_click_takes(place: str, command: str) -> None:
    plain = re.sub(r"   +[^-].*", "", command)  # an explanation beside it
    for arguments in arguments_of(plain):
        try:
            check(arguments)
        except click.ClickException as error:
            pytest.fail(f"{place}: {command}: {error.format_message()}")


def test_a_wrong_option_and_a_wrong_choice_are_noticed() -> None:
    for wrong in (
        "fit model --stage 3",
        "fit model --mixer rotations",
        "export --onnx a.onnx --batch x",
        "fitt model",
        "fit --config a --stage 3",
    ):
        with pytest.raises(click.ClickException):
            check(wrong.split())
