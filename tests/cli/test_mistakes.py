"""User mistakes: the line that each prints, and its exit code, as mistakes.txt has them."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import mistake_folders
import pytest

from spm_compress_cli.main import main

TABLE = Path(__file__).with_name("mistakes.txt").read_text(encoding="utf-8")
MISTAKES = re.findall(r"^\$ (.*?)(?:  # (.*))?\n(\d): (.*)$", TABLE, re.MULTILINE)


@pytest.fixture(scope="session")
def filled(bert: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yard")
    mistake_folders.fill(folder, bert, texts)
    return folder


def test_every_entry_of_the_table_is_read() -> None:
    assert len(MISTAKES) == TABLE.count("\n$ ") > 100


@pytest.mark.parametrize(("arguments", "notes", "code", "line"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: str,
    notes: str,
    code: str,
    line: str,
    filled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = tmp_path / "here"
    shutil.copytree(filled, folder)
    changes, has_results = notes.replace("results", "").strip(), "results" in notes
    getattr(mistake_folders, changes or "nothing")(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["spm-compress", *arguments.split()])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capfd.readouterr()  # ONNX Runtime's own lines would come from outside Python
    *progress, last = captured.err.splitlines()
    meant = re.escape(f"error: {line}").replace(re.escape("..."), ".*")
    assert re.fullmatch(meant, last), last
    assert not [each for each in progress if "rror" in each and not re.match(r"\[\d+/\d+\] ", each)]
    assert end.value.code == int(code)
    assert bool(captured.out) == has_results
    changed = {path for path in before if path.read_bytes() != before[path]}
    assert changed <= ({folder / "bert.spm.safetensors"} if "--eval" in arguments else set())
    ours = {path for path in folder.rglob("*") if not {".spm-compress", "__pycache__"} & set(path.parts)}
    assert {path for path in ours if path.is_file()} == set(before)


def test_the_command_alone_shows_its_help(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["spm-compress"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert capfd.readouterr().err.startswith("Usage: spm-compress [OPTIONS] COMMAND")
