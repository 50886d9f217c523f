"""`spm-compress bench` as a process of its own: what it prints."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from running import spm
from small_graphs import lookup, product

QUICK = ["--repeats", "3", "--seconds", "0.2"]


def bench(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return spm("bench", *arguments, *QUICK, cwd=cwd)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    product(tmp_path / "out.onnx")
    product(tmp_path / "dense.onnx")
    return tmp_path


def test_tables_are_whole_and_fit_80_columns(tmp_path: Path) -> None:
    lookup(tmp_path / "out.onnx")
    lookup(tmp_path / "dense.onnx")
    sizes = ["--batch", "1,4", "--sequence", "5,7", "--threads", "1,2"]
    done = bench("out.onnx", "--against", "dense.onnx", *sizes, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    rows = [line.split() for line in done.stdout.splitlines()]
    cells = [row[:2] for row in rows if len(row) == 11 and row[0].isdigit()]
    assert cells == 2 * [["1", "5"], ["1", "7"], ["4", "5"], ["4", "7"]]
    for title in ("file size", "load", "memory", "CPUExecutionProvider, 1 thread", "CPUExecutionProvider, 2 threads"):
        assert title in done.stdout
    assert len(done.stderr.splitlines()) == 1 + 8


def test_json_is_all_there_is_on_stdout(folder: Path) -> None:
    done = bench(
        "out.onnx", "--against", "dense.onnx", "--batch", "1,4", "--sequence", "5", "--json", "--quiet", cwd=folder
    )
    assert done.stderr == ""
    value = json.loads(done.stdout)
    assert value["schema"] == "spm-compress/bench/1"
    assert (value["model"], value["against"]) == ("out.onnx", "dense.onnx")
    assert [(each["batch"], each["sequence"]) for each in value["latencies"]] == [(1, None), (4, None)]
    for each in value["latencies"]:
        assert each["ratio"] == each["against"]["median_seconds"] / each["model"]["median_seconds"]


def test_sizes_that_a_model_has_no_axis_for_are_said_to_be_unused(tmp_path: Path) -> None:
    product(tmp_path / "out.onnx", dims=(3, 96))
    done = bench("out.onnx", "--batch", "1,4", "--sequence", "5", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out.onnx: has no dynamic axis but the batch; --sequence is not used" in done.stderr
    assert "out.onnx: has a fixed batch of 3; --batch is not used" in done.stderr
    assert "against" not in done.stdout
    assert "ratio" not in done.stdout


def test_a_sweep_prints_every_cell_and_draws_it(tmp_path: Path) -> None:
    done = bench("--sweep", "--features", "16,64", "--batch", "1,3", "--picture", "map.svg", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80
    rows = [line.split() for line in done.stdout.splitlines() if line.split()[:1] in (["16"], ["64"])]
    assert [row[:2] for row in rows] == [["16", "1"], ["16", "3"], ["64", "1"], ["64", "3"]]
    assert all("".join(row).count("*") == 1 for row in rows)
    assert (tmp_path / "map.svg").read_text().startswith("<?xml")
    assert done.stderr.splitlines()[-1] == "map.svg: written"


def test_a_sweep_as_json(tmp_path: Path) -> None:
    done = bench("--sweep", "--features", "16", "--batch", "1,3", "--stages", "4", "--json", "--quiet", cwd=tmp_path)
    assert done.stderr == ""
    value = json.loads(done.stdout)
    assert value["schema"] == "spm-compress/break-even/1"
    assert value["setting"]["stages"] == 4
    assert [(cell["features"], cell["batch"]) for cell in value["cells"]] == [(16, 1), (16, 3)]
    for cell in value["cells"]:
        assert set(cell["seconds"]) == set(cell["ratios"]) > {"float32", "int8", "stages feature-major"}
        assert cell["ratios"]["int8"] == cell["seconds"]["float32"] / cell["seconds"]["int8"]
        assert cell["seconds"][cell["fastest"]] == min(cell["seconds"].values())
