"""stdout and stderr that are closed, full, unread or ASCII, and names that a terminal must not get as they are."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path

import pytest
import torch
from pseudo_terminal import in_pseudo_terminal
from running import COMMAND
from safetensors.torch import save_file
from test_terminal import CODES

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, write_artifact

# Markup, an emoji's name, a screen that is cleared, a new line, a change of direction, what ASCII has not.
NAME = "a[red]b[/red]:smile:\x1b[2J\nerror: \u202eé漢"
SHOWN = r"a[red]b[/red]:smile:\x1b[2J\nerror: \u202eé漢"
ASCII = SHOWN.replace("é", r"\xe9").replace("漢", r"\u6f22")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    torch.manual_seed(0)
    tensors = {f"{NAME}.weight": torch.randn(64, 64), f"{NAME}.[/]": torch.ones(3)}
    save_file(tensors, folder / "é[bold].safetensors")
    fit = CompressSettings(FitSettings(stages=3, block=8, steps=1))
    artifact = fit_model(open_source(folder / "é[bold].safetensors"), fit, beside=folder)
    write_artifact(artifact, folder / "m.spm.safetensors")
    return folder


def in_shell(line: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line in which SPM stands for the command; the exit code is the command's, also before a pipe."""
    line = line.replace("SPM", " ".join(COMMAND))
    script = f"{line}; exit ${{PIPESTATUS[0]}}"
    plain = {key: x for key, x in os.environ.items() if key not in ("PYTHONUNBUFFERED", "FORCE_COLOR", "COLUMNS")}
    return subprocess.run(
        ["bash", "-c", script], cwd=cwd, capture_output=True, check=False, env={**plain, **environment}
    )


@pytest.mark.parametrize(
    ("command", "unbuffered"),
    [
        ("--version", "1"),
        ("--version", ""),
        ("report m.spm.safetensors", ""),
        pytest.param("report m.spm.safetensors --json", "1", marks=pytest.mark.slow),
    ],
)
def test_a_full_or_closed_stdout_is_one_line_and_an_unread_one_is_none(
    folder: Path, command: str, unbuffered: str
) -> None:
    for where, why in (("> /dev/full", "No space left on device"), (">&-", "Bad file descriptor")):
        run = in_shell(f"SPM {command} {where}", folder, PYTHONUNBUFFERED=unbuffered)
        assert (run.returncode, run.stderr.decode()) == (1, f"error: stdout: cannot be written ({why})\n")
    unread = in_shell(f"SPM {command} | true", folder, PYTHONUNBUFFERED=unbuffered)
    assert (unread.returncode, unread.stderr) == (1, b"")


def test_what_was_to_be_written_to_files_is_there_though_stdout_is_full(folder: Path) -> None:
    run = in_shell("SPM expand m.spm.safetensors -o full.safetensors > /dev/full", folder)
    assert run.returncode == 1
    assert (folder / "full.safetensors").exists()


@pytest.mark.parametrize("where", ["2> /dev/full", "2>&-", "2> >(true)"])
def test_without_a_stderr_the_work_is_done(folder: Path, where: str) -> None:
    run = in_shell(f"SPM fit é*.safetensors --steps 1 -o new.spm.safetensors {where}", folder)
    assert run.returncode == 0
    assert b"new.spm.safetensors: 1 weights fitted" in run.stdout


def test_no_file_becomes_a_stream_that_was_closed(folder: Path) -> None:
    run = in_shell("SPM expand m.spm.safetensors -o closed.safetensors <&- >&- 2>&-", folder)
    assert (run.returncode, run.stdout + run.stderr) == (1, b"")
    run = in_shell("SPM expand m.spm.safetensors -o open.safetensors", folder)
    assert (folder / "closed.safetensors").read_bytes() == (folder / "open.safetensors").read_bytes()


COMMANDS = [
    "inspect é*.safetensors --probe-steps 0",
    "fit é*.safetensors --steps 1 -o new.spm.safetensors -v",
    "export m.spm.safetensors --layers --onnx layers --lowering stages",
]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "environment",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="ascii"),
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, id="C", marks=pytest.mark.slow),
        pytest.param({}, id="utf-8", marks=pytest.mark.slow),
    ],
)
def test_names_are_escaped_where_they_cannot_be_shown(
    folder: Path, command: str, environment: dict[str, str], tmp_path: Path
) -> None:
    for path in folder.glob("*.safetensors"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    run = in_shell(f"SPM {command}", tmp_path, **environment)
    written = (run.stdout + run.stderr).decode("ascii" if environment else "utf-8")
    assert run.returncode == 0, written
    assert (ASCII if environment else SHOWN) in written or "--layers" in command
    assert all(each.isprintable() or each == "\n" for each in written)
    assert "\nerror" not in written


def test_an_error_says_a_name_in_one_line_without_its_controls(folder: Path) -> None:
    run = in_shell(r"""SPM report $'no\x1b[2J\xff[/]such'""", folder)
    assert run.returncode == 1
    assert run.stderr.decode() == (
        r"error: no\x1b[2J\udcff[/]such: no such artifact; make one with: spm-compress fit MODEL" "\n"
    )


def test_json_keeps_every_name_on_every_terminal(folder: Path) -> None:
    for environment in ({"PYTHONIOENCODING": "ascii"}, {}):
        run = in_shell("SPM report m.spm.safetensors --json", folder, **environment)
        assert json.loads(run.stdout)["layers"][0]["name"] == f"{NAME}.weight"


def test_bars_on_a_terminal_show_names_and_no_controls_of_theirs(folder: Path) -> None:
    arguments = ["fit", "é[bold].safetensors", "--steps", "40", "-o", "bars.spm.safetensors", "-v"]
    plain = {key: x for key, x in os.environ.items() if key not in ("CI", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM")}
    for environment, name in (({}, SHOWN), ({"PYTHONIOENCODING": "ascii"}, ASCII)):
        code, written = in_pseudo_terminal([*COMMAND, *arguments], folder, {**plain, **environment}, 250)
        assert code == 0, written
        assert "\x1b[2J" not in written
        assert re.search(r"64x64 " + re.escape(name), CODES.sub("", written))
