"""`spm-compress distill`, and `--eval` with its gates."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from running import spm
from test_interruption import interrupted

from spm_compress import read_artifact
from spm_compress.distill.state import kept_step

QUICK = ["--steps", "24", "--batch", "8", "--check-every", "8", "--held-out", "0.2"]
QUICK += ["--rate", "0.01", "--block-share", "0.3"]
SCORE = """
import torch

def first(model):
    torch.manual_seed(0)
    ids = torch.randint(5, 50, (8, 6))
    return model(input_ids=ids).last_hidden_state[..., 0].mean()
"""


@pytest.fixture
def fitted(bert: Path, texts: Path, tmp_path: Path) -> Path:
    """A working directory with texts, a module to score models with, and a fitted artifact."""
    shutil.copytree(bert, tmp_path / "bert")
    shutil.copy(texts, tmp_path / "texts.txt")
    (tmp_path / "score.py").write_text(SCORE)
    found = spm("fit", "bert", "--stages", "4", "--block", "8", "--steps", "20", "--include", "encoder.*", cwd=tmp_path)
    assert found.returncode == 0, found.stderr
    return tmp_path


def test_distill_report_export(fitted: Path) -> None:
    inside = ["--relations", "0.1", "--relation-layers", "all", "--hidden", "0.1", "--hidden-layers", "0"]
    run = spm("distill", "--calibration", "texts.txt", *QUICK, *inside, "--log", "log.jsonl", "--json", cwd=fitted)
    assert run.returncode == 0, run.stderr
    assert "[24/24] outputs: loss" in run.stderr
    told = json.loads(run.stdout)
    assert told["artifact"] == "bert.recovered.spm.safetensors"
    assert told["recovery"]["after"] > told["recovery"]["before"]
    lines = [json.loads(line) for line in (fitted / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [8, 16, 24]
    assert lines[-1]["best"] == told["recovery"]["after"]
    assert not (fitted / "bert.recovered.spm.safetensors.state").exists()
    settings = read_artifact(fitted / "bert.recovered.spm.safetensors").recovery["settings"]
    assert (settings["relation_layers"], settings["hidden_layers"]) == ("all", "0")
    assert list((fitted / ".spm-compress" / "teacher").glob("*/*.safetensors"))
    report = spm("report", "bert.recovered.spm.safetensors", cwd=fitted)
    assert "trained for 24 steps on texts.txt" in " ".join(report.stdout.split())
    export = spm("export", "bert.recovered.spm.safetensors", "--onnx", "out.onnx", "--lowering", "blocks", cwd=fitted)
    assert export.returncode == 0, export.stderr


def test_interrupted_it_says_what_is_kept(fitted: Path) -> None:
    endless = ["distill", "--calibration", "texts.txt", *QUICK[2:], "--steps", "1000000", "--log", "log.jsonl"]
    state = "bert.recovered.spm.safetensors.state"
    first = interrupted(*endless, "--keep-every", "999999", cwd=fitted, when="log.jsonl")
    begun = r"error: interrupted at step \d+, before its first state was kept; the same command begins anew"
    assert re.fullmatch(rf"{begun} \(--keep-every\)", first)
    assert not (fitted / state).exists()
    later = interrupted(*endless, "--keep-every", "4", cwd=fitted, when=state)
    found = re.fullmatch(
        rf"error: interrupted at step (\d+); its state at step (\d+) is kept in {state}, and the same command goes on "
        "from it",
        later,
    )
    assert found
    assert 0 <= int(found[1]) - int(found[2]) <= 4
    assert int(found[2]) == kept_step(fitted / state)


def test_the_users_measure_is_printed_for_every_model_and_is_a_gate(fitted: Path) -> None:
    command = ["distill", "bert.spm.safetensors", "--calibration", "texts.txt", *QUICK, "--eval", "score:first"]
    run = spm(*command, "--json", "--max-drop", "10", cwd=fitted)
    assert run.returncode == 0, run.stderr
    scores = json.loads(run.stdout)["scores"]
    assert list(scores) == ["original", "fitted", "recovered"]
    assert len(set(scores.values())) == 3
    missed = spm(*command, "--min-score", "1e6", cwd=fitted)
    assert missed.returncode == 1
    assert "the recovered model's" in missed.stderr
    assert "below --min-score 1000000.0" in missed.stderr
    assert "Traceback" not in missed.stderr
    assert (fitted / "bert.recovered.spm.safetensors").exists()


def test_a_fit_can_be_judged_too(fitted: Path) -> None:
    command = ["fit", "bert", "--stages", "4", "--block", "8", "--steps", "5", "--include", "encoder.*", "--quiet"]
    run = spm(*command, "--eval", "score:first", "--max-drop", "-10", cwd=fitted)
    assert run.returncode == 1
    assert "score: original" in run.stdout
    assert "more than --max-drop -10" in run.stderr


def test_texts_of_a_datasets_folder_are_those_of_a_text_file(fitted: Path) -> None:
    from datasets import Dataset

    lines = (fitted / "texts.txt").read_text().splitlines()
    Dataset.from_dict({"label": [0] * len(lines), "text": lines}).save_to_disk(fitted / "saved")
    told = []
    for data in ("texts.txt", "saved"):
        run = spm("distill", "bert.spm.safetensors", "--calibration", data, *QUICK, "--json", "--quiet", cwd=fitted)
        assert run.returncode == 0, run.stderr
        told.append(json.loads(run.stdout)["layers"])
    assert told[0] == told[1]
