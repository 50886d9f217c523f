"""Every command of the how-tos runs, page by page, on a small BERT in the place of MiniLM."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import trainable_graphs
from pages import DOCS, arguments_of, blocks

from spm_compress_cli.main import main

# What is appended so that nothing takes long: two steps of what descends, three runs of what is timed, few tokens.
_SHORT = {
    "compress": ["--sequence", "8", "--threads", "1"],
    "fit": ["--steps", "2"],
    "distill": ["--steps", "2", "--check-every", "1", "--batch", "4"],
    "inspect": ["--probe-steps", "2"],
    "bench": ["--repeats", "3", "--seconds", "0.1", "--sequence", "8"],
    "export": ["--sequence", "8"],
    "verify": ["--sequence", "8"],
}
# Before a shell's line of completion, and after it: what says that the shell has it.
_SHELLS = {
    "bash": ("", "complete -p spm-compress"),
    "zsh": ("autoload -Uz compinit; compinit -D", "(( ${+_comps[spm-compress]} ))"),
    "fish": ("", "complete -C 'spm-compress fi' | string match --quiet 'fit*'"),
}
_RECOVER = ["--recover", "1s"]
_BUDGET = ["--budget", "0.4"]  # what a matrix of 32x32 can be had for


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_the_commands_of_a_how_to_run(
    page: Path, bert: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(bert, tmp_path / "minilm")
    shutil.copy(texts, tmp_path / "texts.txt")
    if page.stem == "recover-accuracy":  # which has a section on ONNX models
        pytest.importorskip("onnx2fx", reason="onnx2fx is for Python 3.11 or later")
        trainable_graphs.classifier(tmp_path / "model.onnx")
        np.savez(tmp_path / "inputs.npz", x=np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32))
    if page.stem == "deploy":  # it begins where a fit has ended
        run(["fit", "minilm", "--include", "encoder.*", "--quiet"], monkeypatch)
    for block in blocks(page):
        if block.title is not None:
            (tmp_path / block.title).write_text(block.text + "\n")
        elif block.language == "sh":
            for line in block.text.split("\n"):
                if line.startswith("python "):
                    subprocess.run([sys.executable, *shlex.split(line)[1:]], check=True)
                else:
                    (arguments,) = arguments_of(line)
                    run(arguments, monkeypatch)
        else:  # Python blocks: test_python_api.py; shells: below
            assert block.language in ("python", "text", "toml", *_SHELLS), (
                f"{page.name}:{block.line}: nothing checks this block"
            )


@pytest.mark.parametrize("shell", _SHELLS)
def test_a_line_of_completion_does_so_in_its_shell(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here")
    (line,) = [block.text for block in blocks(DOCS / "how-to" / "configure.md") if block.language == shell]
    launcher = tmp_path / "spm-compress"
    launcher.write_text(f'#!/bin/sh\nexec {sys.executable} -m spm_compress_cli "$@"\n')
    launcher.chmod(0o755)
    before, after = _SHELLS[shell]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    subprocess.run([program, "-c", f"{before}\n{line}\n{after}"], env=environment, cwd=tmp_path, check=True)


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command in this process, shortened."""
    added = [*_SHORT.get(arguments[0], [])]
    added += _BUDGET if arguments[0] == "fit" and "--budget" in arguments else []
    added += _RECOVER if "--recover" in arguments else []
    monkeypatch.setattr(sys, "argv", ["spm-compress", *arguments, *added])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code, " ".join(arguments)
