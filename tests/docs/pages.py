"""The pages of the documentation as what they tell the reader to do: files to write, commands to run, output to expect.

1. A block ```python title="NAME"``` is a file that the reader writes.
2. A block ```console``` holds commands, each after `$ `, and under each what it prints on stdout. A line that ends in
   a backslash goes on in the next.
3. A comment <!-- numbers within 5% --> or <!-- numbers within 3x --> before such a block says how far the numbers in
   its output may be from those on the page; without it, they have to be the same.
4. Runs of blanks and of the lines of tables count as one: a longer number moves a column.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["DOCS", "Block", "Command", "arguments_of", "blocks", "commands", "difference", "markdown_pages"]

DOCS = Path(__file__).resolve().parents[2] / "docs"
_FENCE = re.compile(r"^( *)```(\w*) *(.*)$")
_TOLERANCE = re.compile(r"<!-- numbers within ([0-9.]+)(%|x) -->")
# Figures, with thousands separated by commas; names such as layer.5 are none.
_NUMBER = re.compile(r"(?<![\w.,-])-?\d[\d,]*(?:\.\d+)?(?:e-?\d+)?(?=%|x\b|[^\w.-]|\.(?!\w)|$)")


@dataclass(frozen=True)
class Block:
    """A fenced block. line: of its first line inside, from 0; ratio: the largest of two numbers that count as equal."""

    page: Path
    line: int
    language: str
    title: str | None
    text: str
    ratio: float = 1.0


@dataclass(frozen=True)
class Command:
    """A command of a ```console``` block and its output. output_lines: where on the page that stands, [from, to)."""

    text: str
    output: str
    output_lines: tuple[int, int]


def markdown_pages() -> list[Path]:
    """Return every page of docs/, and the README."""
    return [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))]


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page."""
    lines = page.read_text(encoding="utf-8").split("\n")
    at, ratio = 0, 1.0
    while at < len(lines):
        stated, fence = _TOLERANCE.search(lines[at]), _FENCE.match(lines[at])
        if stated:
            amount = float(stated[1])
            ratio = 1 + amount / 100 if stated[2] == "%" else amount
        elif fence:
            indent, language, rest = fence.groups()
            end = next(i for i in range(at + 1, len(lines)) if lines[i] == f"{indent}```")
            title = re.search(r'title="([^"]+)"', rest)
            text = "\n".join(line.removeprefix(indent) for line in lines[at + 1 : end])
            yield Block(page, at + 1, language, title[1] if title else None, text, ratio)
            at, ratio = end, 1.0
        at += 1


def commands(block: Block) -> list[Command]:
    """Return the commands of a ```console``` block in order."""
    lines = block.text.split("\n")
    starts = [i for i, line in enumerate(lines) if line.startswith("$ ")]
    assert starts and starts[0] == 0, f"{block.page.name}:{block.line}: a console block begins with a command"
    found = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        last = start
        while lines[last].endswith("\\"):
            last += 1
        text = "\n".join([lines[start].removeprefix("$ "), *lines[start + 1 : last + 1]])
        output = "\n".join(lines[last + 1 : end])
        found.append(Command(text, output, (block.line + last + 1, block.line + end)))
    return found


def arguments_of(command: str) -> list[list[str]]:
    """Return the arguments of each spm-compress command of a line; comments and what it is piped into are left out."""
    lexer = shlex.shlex(command, posix=True, punctuation_chars="|&;<>")
    lexer.whitespace_split = True
    found: list[list[str]] = []
    current: list[str] | None = None
    for token in lexer:
        if set(token) <= set("|&;<>"):
            current = None
        elif token == "spm-compress" and current is None:
            current = []
            found.append(current)
        elif current is not None:
            current.append(token)
    return found


def difference(found: str, expected: str, ratio: float) -> str | None:
    """Say where an output is not what the page says (rules 3 and 4), or return None."""
    left, right = ([_plain(line) for line in each.strip().split("\n")] for each in (found, expected))
    if len(left) != len(right):
        return f"{len(left)} lines instead of {len(right)}"
    for a, b in zip(left, right, strict=True):
        if ratio == 1 or a == b:
            if a != b:
                return f"{a!r} instead of {b!r}"
            continue
        if _NUMBER.sub("#", a) != _NUMBER.sub("#", b):
            return f"{a!r} instead of {b!r}"
        for x, y in zip(_NUMBER.findall(a), _NUMBER.findall(b), strict=True):
            if not _near(float(x.replace(",", "")), float(y.replace(",", "")), ratio):
                return f"{x} instead of {y} in {a!r}"
    return None


def _near(x: float, y: float, ratio: float) -> bool:
    small, large = sorted((abs(x), abs(y)))
    return x == y or (x * y > 0 and large <= ratio * small)


def _plain(line: str) -> str:
    # What takes a second on a busy machine takes milliseconds on another.
    line = re.sub(r"(\d+\.\d+) s\b", lambda found: f"{float(found[1]) * 1000:g} ms", line)
    return re.sub("[ ━─]+", " ", line).strip()
