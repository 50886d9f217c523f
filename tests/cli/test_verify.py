"""`spm-compress verify`: two files side by side, the gates."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from running import spm
from small_graphs import lookup, product

SCORE = """
import torch

def accuracy(model):
    torch.manual_seed(0)
    return model(torch.randn(4, 96)).sum()

def named(model):
    answer = model(x=torch.ones(2, 96, dtype=torch.float64))
    assert answer.y.shape == (2, 64)
    return answer["y"].sum()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A dense model, one that is a tenth larger, and a module to score them with."""
    product(tmp_path / "dense.onnx")
    model = onnx.load(tmp_path / "dense.onnx")
    (weight,) = model.graph.initializer
    weight.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(weight), "w"))
    onnx.save(model, tmp_path / "out.onnx")
    (tmp_path / "score.py").write_text(SCORE)
    return tmp_path


def test_the_difference_is_measured_at_every_size(folder: Path) -> None:
    run = spm("verify", "out.onnx", "--against", "dense.onnx", "--batch", "1,5", "--json", cwd=folder)
    assert run.returncode == 0, run.stderr
    value = json.loads(run.stdout)
    assert value["schema"] == "spm-compress/verify/1"
    assert [(each["batch"], each["sequence"], each["output"]) for each in value["differences"]] == [
        (1, None, "y"),
        (5, None, "y"),
    ]
    for each in value["differences"]:
        assert each["error"] == pytest.approx(0.1, rel=1e-5)
        assert each["cosine"] == pytest.approx(1.0)
        assert each["largest"] > 0
    assert value["scores"] is None


def test_tables_fit_80_columns(folder: Path) -> None:
    lookup(folder / "words.onnx")
    run = spm("verify", "words.onnx", "--against", "words.onnx", "--batch", "1,2", "--sequence", "4,32", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert max(map(len, run.stdout.splitlines())) <= 80
    rows = [line.split() for line in run.stdout.splitlines() if line.strip().startswith("y ")]
    assert [row[1:3] for row in rows] == [["1", "4"], ["1", "32"], ["2", "4"], ["2", "32"]]
    assert all(row[3:] == ["0", "0", "1.0000"] for row in rows)
    assert len(run.stderr.splitlines()) == 4


@pytest.mark.parametrize("function", ["accuracy", "named"])
def test_a_file_is_scored_as_a_module_is(folder: Path, function: str) -> None:
    run = spm("verify", "out.onnx", "--against", "dense.onnx", "--eval", f"score:{function}", "--json", cwd=folder)
    assert run.returncode == 0, run.stderr
    scores = json.loads(run.stdout)["scores"]
    assert scores["exported"] == pytest.approx(1.1 * scores["original"], rel=1e-4)
    table = spm("verify", "out.onnx", "--against", "dense.onnx", "--eval", f"score:{function}", cwd=folder)
    assert "score: original" in table.stdout


def test_outputs_of_other_shapes_are_refused(folder: Path) -> None:
    model = onnx.load(folder / "dense.onnx")
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((96, 32), np.float32), "w"))
    model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value = 32
    onnx.save(model, folder / "narrow.onnx")
    run = spm("verify", "narrow.onnx", "--against", "dense.onnx", cwd=folder)
    assert run.returncode == 1
    assert "narrow.onnx answers with y [1, 32], but dense.onnx with y [1, 64]" in run.stderr
