"""`init`, `--config`, `fit --from` and the completion of names."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import click
import mistake_folders
import pytest

from spm_compress import read_artifact, write_artifact
from spm_compress.compress import CompressSettings
from spm_compress_cli.config import option_key
from spm_compress_cli.main import cli, main

Run = Callable[[str], str]


@pytest.fixture(scope="module")
def filled(bert: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yard")
    mistake_folders.fill(folder, bert, texts)
    return folder


@pytest.fixture
def here(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(filled, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def run(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def run(arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["spm-compress", *arguments.split()])
        with pytest.raises(SystemExit) as end:
            main()
        captured = capfd.readouterr()
        assert not end.value.code, captured.err
        return captured.out

    return run


def test_init_writes_a_configuration_that_changes_nothing_until_it_is_edited(here: Path, run: Run) -> None:
    run("init model.safetensors")
    run("fit --config spm.toml --steps 3")
    assert "model.safetensors" in (here / "spm.toml").read_text()
    configured = (here / "model.spm.safetensors").read_bytes()
    run("fit model.safetensors --steps 3 -o plain.spm.safetensors")
    assert configured == (here / "plain.spm.safetensors").read_bytes()


def test_every_default_that_init_writes_is_the_default(here: Path, run: Run) -> None:
    run("init model.safetensors")
    text = (here / "spm.toml").read_text()
    # Lines whose value is a word in capitals, or a choice of several, say what kind it takes.
    defaults = re.sub(r"^# ([a-z-]+ = (?!\[?\"[^\"]*(?:[A-Z]{1,}[^a-z\"]*\"|\|)).*)$", r"\1", text, flags=re.MULTILINE)
    assert 'effort = "balanced"' in defaults.splitlines() and "min-features = 32" in defaults.splitlines()
    (here / "all.toml").write_text(defaults)
    run("fit --config all.toml --steps 3 -o all.spm.safetensors")
    run("fit model.safetensors --steps 3 -o plain.spm.safetensors")
    assert (here / "all.spm.safetensors").read_bytes() == (here / "plain.spm.safetensors").read_bytes()


def test_init_names_the_weights_by_globs_that_match_them(here: Path, run: Run) -> None:
    run("init bert -o bert.toml")
    globs = re.findall(r"^#   (\S+)$", (here / "bert.toml").read_text(), re.MULTILINE)
    assert "encoder.layer.*[0-9].attention.output.dense.weight" in globs
    counts = re.findall(r"^#     (\d+) of (\d+)x(\d+);", (here / "bert.toml").read_text(), re.MULTILINE)
    for glob, (count, _, _) in zip(globs, counts, strict=True):
        run(f"fit bert --include {glob} --stages 3 --block 8 --steps 0 -o one.spm.safetensors")
        assert len(read_artifact(here / "one.spm.safetensors").layers) == int(count), glob


def test_a_configuration_holds_every_option_and_the_command_line_goes_before_it(here: Path, run: Run) -> None:
    (here / "spm.toml").write_text(
        '[fit]\nmodel = "model.safetensors"\nstages = 4\nblock = 8\nsteps = 2\ninclude = "2.*"\n'
        'layer = ["2.*:mixer=rotation"]\nquiet = true\n[export]\nonnx = "out.onnx"\nbatch = [1, 4]\n'
    )
    run("fit --config spm.toml -o configured.spm.safetensors")
    options = "--block 8 --steps 2 --include 2.* --layer 2.*:mixer=rotation --quiet"
    run(f"fit model.safetensors --stages 4 {options} -o said.spm.safetensors")
    assert (here / "configured.spm.safetensors").read_bytes() == (here / "said.spm.safetensors").read_bytes()
    run("fit --config spm.toml --stages 5 -o before.spm.safetensors")
    run(f"fit model.safetensors --stages 5 {options} -o said.spm.safetensors")
    assert (here / "before.spm.safetensors").read_bytes() == (here / "said.spm.safetensors").read_bytes()
    for command in cli.commands.values():
        keys = [option_key(each) for each in command.params if each.expose_value]
        assert len(set(keys)) == len(keys)
        assert any("--config" in each.opts for each in command.params)


FITS = [
    "model.safetensors --stages 3 --block 8 --steps 4 --seed 3 --schedule random --mixer rotation --bits 16",
    "model.safetensors --steps 4 --effort best --stages 4 --exclude 2.* --min-features 40",
    "model.safetensors --stages 8 --block 8 --steps 4 --forms sum,low-rank --bits 16 --layer 0.*:form=dense",
    "model.safetensors --budget 0.4 --block 8 --steps 4 --low-rank auto",
    "bert --include encoder.* --stages 3 --block 8 --steps 4 --calibration texts.txt --sequential",
    "bert --include encoder.* --block 8 --steps 4 --layer *.query.*:stages=6,low-rank=auto --layer *.key.*:mixer=auto",
    "--factory code_of_the_user:build --steps 4 --low-rank 2",
]


@pytest.mark.parametrize("arguments", FITS)
def test_a_fit_repeated_from_its_artifact_gives_the_same_bytes(arguments: str, here: Path, run: Run) -> None:
    run(f"fit {arguments} -o first.spm.safetensors")
    again = arguments if arguments.startswith("--factory") else ""
    run(f"fit --from first.spm.safetensors {again} -o second.spm.safetensors")
    assert (here / "first.spm.safetensors").read_bytes() == (here / "second.spm.safetensors").read_bytes()
    run(f"fit --from first.spm.safetensors {again} --seed 9 -o other.spm.safetensors")
    said, other = (read_artifact(here / f"{name}.spm.safetensors").settings for name in ("first", "other"))
    assert {**said, "seed": 9} == dict(other)


@pytest.mark.parametrize(("bits", "said"), [("32", "F32"), ("16", "F16"), ("16", "float16")])
def test_a_fit_of_before_codecs_and_forms_is_repeated(bits: str, said: str, here: Path, run: Run) -> None:
    run(f"fit model.safetensors --stages 3 --steps 4 --mixer rotation --bits {bits} -o first.spm.safetensors")
    first = read_artifact(here / "first.spm.safetensors")
    settings = {
        key: value for key, value in first.settings.items() if key not in ("forms", "bits", "dense_bits", "table_bits")
    } | {"store": said}
    write_artifact(replace(first, settings=settings), here / "old.spm.safetensors")
    run("fit --from old.spm.safetensors -o second.spm.safetensors")
    assert (here / "first.spm.safetensors").read_bytes() == (here / "second.spm.safetensors").read_bytes()


def test_what_a_manifest_says_of_a_fit_is_what_the_command_line_can_say() -> None:
    options = {each.name for each in cli.commands["fit"].params}
    # The step size is no option: every fit of this version has the same.
    assert set(CompressSettings().to_json()) - {"learning_rate"} <= options


COMPLETED = {
    "bash": ("6", r"plain,encoder.layer.0.attention.self.key.weight:"),
    "zsh": ("6", r"encoder.layer.0.attention.self.key.weight\:"),
    "fish": ("encoder.layer.0.attention.self.k", "plain,encoder.layer.0.attention.self.key.weight:\t32x32"),
}


@pytest.mark.parametrize("shell", ["bash", *(pytest.param(each, marks=pytest.mark.slow) for each in ("zsh", "fish"))])
def test_shells_complete_names_out_of_the_file(shell: str, here: Path) -> None:
    place, line = COMPLETED[shell]
    done = subprocess.run(
        [sys.executable, "-m", "spm_compress_cli"],
        env={
            **os.environ,
            "_SPM_COMPRESS_COMPLETE": f"{shell}_complete",
            "COMP_WORDS": "spm-compress fit --steps 4 bert --layer encoder.layer.0.attention.self.k",
            "COMP_CWORD": place,
        },
        cwd=here,
        capture_output=True,
        text=True,
        check=True,
    )
    assert line in done.stdout.splitlines()
    assert "query" not in done.stdout


def test_completion_runs_no_code_and_says_nothing_of_what_it_cannot_read(here: Path) -> None:
    (here / "code_of_the_user.py").write_text("raise SystemExit('called')")
    fit = cli.commands["fit"]
    include = next(each for each in fit.params if each.name == "include")
    lines = [["--factory", "code_of_the_user:build"], ["absent.safetensors"], ["texts.txt"], []]
    for line, end in itertools.product(lines, (["--include"], [])):
        context = fit.make_context("fit", [*line, *end], resilient_parsing=True, parent=click.Context(cli))
        assert include.shell_complete(context, "") == []
