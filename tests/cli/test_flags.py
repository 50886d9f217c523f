"""The library names its fields, the command line its options."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from spm_compress_cli.flags import with_flags
from spm_compress_cli.main import cli

LIBRARY = Path(__file__).resolve().parents[2] / "spm_compress"
# Options of other programs, and names of colours.
OTHERS = ("tf2onnx --tflite", "llama-gguf-split --merge", "--optimization_style", "--output_dir", "var(--")


def texts(node: ast.AST) -> Iterator[str]:
    for each in ast.walk(node):
        if isinstance(each, ast.Constant) and isinstance(each.value, str):
            yield each.value


def test_no_option_of_the_command_line_is_in_the_library() -> None:
    for path in LIBRARY.rglob("*.py"):
        for text in texts(ast.parse(path.read_text(encoding="utf-8"))):
            for other in OTHERS:
                text = text.replace(other, "")
            assert not re.search(r"(?<![\w-])--[a-z]", text), f"{path}: {text}"


def test_every_field_in_a_message_of_the_library_is_an_option_or_a_command() -> None:
    found = set()
    for path in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise):
                found |= {name for text in texts(node) for name in re.findall(r"`\w+`", text)}
    assert {"`seed`", "`exclude`", "`export_onnx`"} <= found
    assert {name for name in found if with_flags(name, cli) == name} == set()


def test_other_words_in_backticks_stay() -> None:
    assert with_flags("`rank` 3, `seed`: see `w.weight` and `nothing`", cli) == (
        "--low-rank 3, --seed: see `w.weight` and `nothing`"
    )
