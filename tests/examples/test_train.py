"""The studies of examples/train run, on data of every format that they read, and their tables say what was trained."""

from __future__ import annotations

import gzip
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from untraced import unmeasured

STUDIES = Path(__file__).parents[2] / "examples" / "train"


def study(name: str, *arguments: str, cwd: Path) -> list[dict[str, object]]:
    """Run a study for a few steps; return what it wrote with --json."""
    command = [sys.executable, STUDIES / name, *arguments, "--seeds", "2", "--json", "out.json", "--threads", "1"]
    done = subprocess.run(command, cwd=cwd, env=unmeasured(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((cwd / "out.json").read_text())
    for each in found:
        assert f"{each['parameters']:,}" in done.stdout
        assert each["seeds"] == 2
        assert np.isfinite(each["mean"])
        assert each["step_seconds"] > 0
    by_name = {each["variant"]: each for each in found if each["study"] == found[0]["study"]}
    sizes = [each["parameters"] for each in by_name.values()]
    assert sizes[1] <= sizes[2] < sizes[0]  # dense of equal parameters, SPM, dense of equal width
    return found


def test_the_teacher_of_stages(tmp_path: Path) -> None:
    found = study("compositional_teacher.py", "--features", "64", "128", "--steps", "3", cwd=tmp_path)
    assert len(found) == 8
    assert {each["study"] for each in found} == {f"compositional teacher, n = {n}" for n in (64, 128)}


@pytest.mark.slow
def test_characters_of_a_file_and_the_experiment(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("the cat sat on the mat. " * 400)
    options = ["--width", "32", "--length", "16", "--stages", "4", "--steps", "3", "--adaptive", "1"]
    found = study("characters.py", "--text", "text.txt", *options, cwd=tmp_path)
    assert [each["variant"] for each in found][-1] == "adaptive SPM, 2 stages"


def test_a_recurrent_cell(tmp_path: Path) -> None:
    found = study("recurrent.py", "--width", "64", "--length", "5", "--stages", "4", "--steps", "3", cwd=tmp_path)
    assert len(found) == 3


def idx(folder: Path) -> None:
    """Fashion-MNIST's files, half of them packed."""
    draw = np.random.default_rng(0)
    for part, count in (("train", 40), ("t10k", 12)):
        for kind, dims in (("images-idx3", (count, 28, 28)), ("labels-idx1", (count,))):
            head = bytes([0, 0, 8, len(dims)]) + b"".join(n.to_bytes(4, "big") for n in dims)
            body = head + draw.integers(0, 3, dims).astype(np.uint8).tobytes()
            path = folder / f"{part}-{kind}-ubyte"
            if part == "train":
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(body))
            else:
                path.write_bytes(body)


def cifar(folder: Path) -> None:
    draw = np.random.default_rng(0)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        rows = draw.integers(0, 256, (20, 3073)).astype(np.uint8)
        rows[:, 0] = np.arange(20) % 10
        (folder / name).write_bytes(rows.tobytes())


def photographs(folder: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    draw = np.random.default_rng(0)
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for i in range(6):
                pixels = draw.integers(0, 256, (40, 50, 3)).astype(np.uint8)
                image.fromarray(pixels).save(folder / part / name / f"{i}.png")


@pytest.mark.parametrize("write", [idx, *(pytest.param(each, marks=pytest.mark.slow) for each in (cifar, photographs))])
def test_images(write, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    folder = tmp_path / "data"
    folder.mkdir()
    write(folder)
    options = ["--width", "64", "--stages", "4", "--steps", "2", "--batch", "8", "--side", "28"]
    found = study("images.py", "--data", "data", *options, cwd=tmp_path)
    assert [each["study"] for each in found] == 3 * ["images, mlp"] + 3 * ["images, mixer"]


def test_a_folder_of_nothing_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, STUDIES / "images.py", "--data", str(tmp_path)]
    done = subprocess.run(command, env=unmeasured(), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: {tmp_path}: holds no idx files, no CIFAR-10 .bin files and no train/ and test/ folders"
    ]
