"""Every command of the tutorial is run, in order, in one folder; what it prints is what the page says.

REWRITE=1 pytest tests/docs/test_tutorial.py --numprocesses=0 puts what was printed on the page where it differs.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from pages import DOCS, blocks, commands, difference

TUTORIAL = DOCS / "tutorial.md"
LAUNCHER = '#!/bin/sh\nexec {python} {module} "$@"\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A fresh folder, with the commands that an installation has put on the PATH in bin/ beside it."""
    (tmp_path / "bin").mkdir()
    # Also for python: a link would not find its environment.
    for name, module in (("spm-compress", "-m spm_compress_cli"), ("pip", "-m pip"), ("python", "")):
        path = tmp_path / "bin" / name
        path.write_text(LAUNCHER.format(python=sys.executable, module=module))
        path.chmod(0o755)
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as the reader would; pip finds what is installed, and only looks further for the model."""
    known = {"PIP_NO_INDEX": "1"} if command.startswith("pip install") else {}
    environment = {
        **os.environ,
        **known,
        "PATH": f"{folder.parent / 'bin'}:{os.environ['PATH']}",
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "OMP_NUM_THREADS": "1",  # two that wait for each other on a busy machine took six times as long
    }
    return subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_of_the_tutorial_prints_what_the_page_says(folder: Path, minilm: Path) -> None:
    del minilm  # not at hand where PyPI is not: then the test is skipped
    lines = TUTORIAL.read_text(encoding="utf-8").split("\n")
    wrong: list[str] = []
    rewritten: list[tuple[tuple[int, int], str]] = []
    ran = 0
    for block in blocks(TUTORIAL):
        if block.title is not None:
            (folder / block.title).write_text(block.text + "\n")
        elif block.language == "console":
            for command in commands(block):
                done = shell(command.text, folder)
                ran += 1
                assert done.returncode == 0, f"{command.text}\n{done.stderr}"
                found = difference(done.stdout, command.output, block.ratio)
                if found is not None:
                    wrong.append(f"$ {command.text}\n{found}")
                    rewritten.append((command.output_lines, done.stdout.rstrip("\n")))
        else:
            assert block.language == "text", f"line {block.line}: a block that nothing checks"
    assert ran > 8
    if wrong and os.environ.get("REWRITE"):
        for (start, end), printed in reversed(rewritten):
            lines[start:end] = [line.rstrip() for line in printed.split("\n")] if printed else []
        TUTORIAL.write_text("\n".join(lines), encoding="utf-8")
    assert not wrong, "\n\n".join(wrong)
