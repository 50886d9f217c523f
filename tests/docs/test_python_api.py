"""The Python blocks of the how-to run, one after the other, and print what the page says where it says so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pages import DOCS, blocks


def test_the_python_blocks_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = DOCS / "how-to" / "python-api.md"
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    found = [block for block in blocks(page) if block.language == "python"]
    for block in found:
        if block.title is not None:
            (tmp_path / block.title).write_text(block.text + "\n")
        else:
            exec(compile("\n" * block.line + block.text, str(page), "exec"), names)
    assert len(found) > 5
    printed = capsys.readouterr().out
    for stated in re.findall(r"^Prints `(.+?)`", page.read_text(encoding="utf-8"), re.MULTILINE):
        assert stated in printed
