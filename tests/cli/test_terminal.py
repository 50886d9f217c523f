"""What a person sees: terminals of several widths, dumb ones, pipes, no colours."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from made import mlp
from mistake_folders import WIDTHS
from pseudo_terminal import in_pseudo_terminal
from running import COMMAND
from safetensors.torch import save_file

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, write_artifact
from spm_compress_cli.main import main

Shown = Callable[..., tuple[str, str]]
CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
COLOURS = re.compile(r"\x1b\[[0-9;]*3[0-9][0-9;]*m")


def in_terminal(*arguments: str, cwd: Path, columns: int = 80, **environment: str) -> str:
    """Return all that the command writes to a terminal of so many columns, stdout and stderr together."""
    plain = {key: x for key, x in os.environ.items() if key not in ("CI", "COLUMNS", "NO_COLOR", "FORCE_COLOR", "TERM")}
    code, written = in_pseudo_terminal([*COMMAND, *arguments], cwd, {**plain, **environment}, columns)
    assert code == 0, written
    return written


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal")
    names = {"0": "encoder.layer.11.attention.output.dense", "2": "encoder.layer.11.intermediate.dense", "4": "head"}
    values = {f"{names[key.split('.')[0]]}.{key.split('.')[1]}": x for key, x in mlp(*WIDTHS).state_dict().items()}
    save_file(values, folder / "model.safetensors")
    source = open_source(folder / "model.safetensors")
    for stages in (3, 4):
        artifact = fit_model(source, CompressSettings(FitSettings(stages=stages, block=8, steps=1)), beside=folder)
        write_artifact(artifact, folder / f"{stages}.spm.safetensors")
    return folder


@pytest.fixture
def shown(folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Shown:
    """Run the command in this process; return its stdout and stderr."""

    def run(*arguments: str, **environment: str) -> tuple[str, str]:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("sys.argv", ["spm-compress", *arguments])
        for name in ("CI", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
            monkeypatch.delenv(name, raising=False)
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit):
            main()
        return tuple(capfd.readouterr())

    return run


RESULTS = [
    ("report", "3.spm.safetensors"),
    ("inspect", "model.safetensors", "--probe-steps", "2"),
    ("diff", "3.spm.safetensors", "4.spm.safetensors"),
    ("fit", "model.safetensors", "--budget", "0.3", "--block", "8", "--steps", "2", "--dry-run"),
]
LAYER = "encoder.layer.11.attention.output.dense.weight"


@pytest.mark.parametrize("arguments", RESULTS, ids=[arguments[0] for arguments in RESULTS])
def test_results_fit_a_terminal_and_are_whole_when_piped(arguments: tuple[str, ...], shown: Shown) -> None:
    for columns in (80, 60):
        # rich takes FORCE_COLOR for a terminal, and COLUMNS for its width.
        found, _ = shown(*arguments, FORCE_COLOR="1", COLUMNS=str(columns))
        lines = [line.rstrip() for line in CODES.sub("", found).splitlines()]
        assert max(map(len, lines)) <= columns
        assert LAYER[:12] in found
    piped, _ = shown(*arguments)
    assert "left out" not in piped and not CODES.search(piped)
    assert re.search(rf"^ *{re.escape(LAYER)} .*\d\.\d\d\d", piped, re.MULTILINE)
    if arguments[0] in ("report", "inspect"):
        assert LAYER.replace("weight", "bias") in piped


def test_a_wide_terminal_has_the_columns_that_a_narrow_one_leaves_out(shown: Shown) -> None:
    report = ("report", "3.spm.safetensors")
    narrow, _ = shown(*report, FORCE_COLOR="1", COLUMNS="80")
    wide, _ = shown(*report, FORCE_COLOR="1", COLUMNS="200")
    left_out = "left out for want of room: bytes, parameters, multiply-adds"
    assert left_out in " ".join(narrow.split()) and left_out not in " ".join(wide.split())
    assert re.search(r"24,576 > [\d,]+", wide) and not re.search(r"24,576 > [\d,]+", narrow)


def test_forms_are_said_in_words(folder: Path, shown: Shown) -> None:
    source = open_source(folder / "model.safetensors")
    for form in ("spm", "low_rank"):
        settings = CompressSettings(FitSettings(stages=8, block=8, steps=1, forms=(form,)))
        write_artifact(fit_model(source, settings, beside=folder), folder / f"{form}.spm.safetensors")
    report, _ = shown("report", "low_rank.spm.safetensors")
    assert re.search(rf"{re.escape(LAYER)} +64x96 +low_rank: rank \d+ ", report)
    found, _ = shown("diff", "spm.spm.safetensors", "low_rank.spm.safetensors")
    assert re.search(rf"{re.escape(LAYER)} +spm: stages 8 .* low_rank: rank \d+ ", found)


def test_bars_on_a_terminal_lines_on_a_dumb_one_and_colours_only_where_they_are_wanted(folder: Path) -> None:
    fit = ("fit", "model.safetensors", "--steps", "40", "-o", "new.spm.safetensors")
    wide = in_terminal(*fit, cwd=folder, columns=80, TERM="xterm")
    narrow = in_terminal(*fit, cwd=folder, columns=40, TERM="xterm", NO_COLOR="1")
    dumb = in_terminal(*fit, cwd=folder, columns=80, TERM="dumb")
    assert "━" in wide and "━" not in CODES.sub("", narrow).partition("3.spm")[0].partition("new.spm")[0]
    assert f"] {LAYER}" not in wide and f"] {LAYER} 64x96 error" in dumb
    for screen, columns in ((wide, 80), (narrow, 40)):
        lines = [line.rstrip() for line in re.split(r"[\r\n]+", CODES.sub("", screen))]
        bars = [line for line in lines if re.search(r"/40 .*error \d", line)]
        assert bars and max(map(len, bars)) <= columns
    assert COLOURS.search(wide) and not COLOURS.search(narrow) and not CODES.search(dumb)


def test_verbose_says_how_each_weight_was_fitted_and_what_ran(shown: Shown) -> None:
    fit = ("fit", "model.safetensors", "--steps", "3", "-o", "new.spm.safetensors")
    results, plain = shown(*fit)
    same, verbose = shown(*fit, "-v")
    nothing, quiet = shown(*fit, "--quiet")
    assert results == same == nothing
    assert quiet == ""
    assert re.match(r"spm-compress \S+, torch \S+, onnxruntime \S+, Python 3", verbose)
    assert "; spm: stages 10; 3 steps from a" in verbose and "stages" not in plain


def test_verbose_says_what_caused_an_error(folder: Path, shown: Shown) -> None:
    (folder / "broken.safetensors").write_bytes(b"\x00" * 500)
    _, plain = shown("fit", "broken.safetensors")
    _, verbose = shown("fit", "broken.safetensors", "--verbose")
    assert re.search(r"^caused by \w+: ", verbose, re.MULTILINE) and "caused by" not in plain
    assert plain.splitlines()[-1] == verbose.splitlines()[-1]


def test_what_users_name_their_files_is_not_markup(folder: Path, shown: Shown) -> None:
    named = folder / "[red]x.spm.safetensors"
    named.write_bytes((folder / "3.spm.safetensors").read_bytes())
    found, _ = shown("report", named.name)
    assert f"{named.name}: 2 weights fitted" in found
