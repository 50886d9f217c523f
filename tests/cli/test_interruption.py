"""A fit that is killed, interrupted or run twice: an output is whole or not there, and nothing done is lost."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from killing import ARGUMENTS, digest, kill_at_random, write_model
from made import mlp
from mistake_folders import WIDTHS
from running import COMMAND, spm
from safetensors.torch import save_file
from untraced import unmeasured

from spm_compress import read_artifact


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_model(tmp_path / "model.safetensors")
    return tmp_path


@pytest.mark.parametrize("kills", [10, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_goes_on_and_ends_with_the_same_bytes(folder: Path, kills: int) -> None:
    found = kill_at_random(folder, kills)
    assert found.resumed >= kills // 4
    assert found.whole


def begin(folder: Path, steps: int) -> subprocess.Popen[str]:
    arguments = [*COMMAND, "fit", "model.safetensors", "--steps", str(steps)]
    return subprocess.Popen(arguments, cwd=folder, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def unfinished(folder: Path) -> Path:
    """A folder with the ledger of a fit that was interrupted after a weight or more."""
    fit = begin(folder, 3000)
    ledger = folder / "model.spm.safetensors.ledger"
    while not list(ledger.glob("*.spm.safetensors")):
        assert fit.poll() is None
        time.sleep(0.02)
    fit.send_signal(signal.SIGINT)
    _, stderr = fit.communicate(timeout=60)
    kept = r"(1 fitted weight is|\d+ fitted weights are) kept in model\.spm\.safetensors\.ledger"
    assert re.fullmatch(
        rf"error: interrupted; {kept}, and the same command goes on from there", stderr.splitlines()[-1]
    )
    assert fit.returncode == 1
    assert not (folder / "model.spm.safetensors").exists()
    return folder


def interrupted(*arguments: str, cwd: Path, when: str) -> str:
    """Interrupt a command as soon as a file is there; return the last line that it says."""
    process = subprocess.Popen([*COMMAND, *arguments], cwd=cwd, stderr=subprocess.PIPE, text=True)
    try:
        while not list(cwd.glob(when)):
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Traceback" not in stderr
    return str(stderr.splitlines()[-1])


def test_an_interrupted_plan_says_that_its_fits_are_kept(folder: Path) -> None:
    arguments = ("fit", "model.safetensors", "--budget", "0.5", "--steps", "5000")
    assert interrupted(*arguments, cwd=folder, when=".spm-compress/*.spm.safetensors") == (
        "error: interrupted; what it found out for its plan is kept in .spm-compress, and the same command goes on "
        "from there"
    )


def test_an_interrupted_export_names_what_it_has_written(folder: Path) -> None:
    save_file(mlp(*WIDTHS).state_dict(), folder / "mlp.safetensors")
    assert spm("fit", "mlp.safetensors", "--steps", "1", cwd=folder).returncode == 0
    arguments = ("export", "mlp.spm.safetensors", "--onnx", "out.onnx", "--dense", "dense.onnx", "--batch", "1,8,64")
    assert interrupted(*arguments, cwd=folder, when="dense.onnx") == (
        "error: interrupted; what was written by then is whole: dense.onnx"
    )
    assert not (folder / "out.onnx").exists()


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(folder: Path) -> None:
    output = folder / "model.spm.safetensors"
    assert spm("fit", "model.safetensors", "--steps", "5", "--seed", "1", cwd=folder).returncode == 0
    before = output.read_bytes()
    most = len(before) // 2  # every weight's own file has room, the whole artifact has not

    run = subprocess.run(
        [*COMMAND, *ARGUMENTS],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=unmeasured(),  # coverage writes a file too
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
    )
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: model.spm.safetensors: cannot be written (")
    assert line.endswith("check the folder's permissions and free space")
    assert output.read_bytes() == before
    assert len(list(folder.glob("*.ledger/*.spm.safetensors"))) == 6
    assert not list(folder.rglob("*.tmp"))
    assert spm(*ARGUMENTS, cwd=folder).returncode == 0
    after = output.read_bytes()
    assert not list(folder.glob("*.ledger"))
    output.unlink()
    assert spm(*ARGUMENTS, cwd=folder).returncode == 0
    assert output.read_bytes() == after != before


def test_the_ledger_of_another_fit_is_refused_with_what_differs(unfinished: Path) -> None:
    run = spm("fit", "model.safetensors", "--steps", "200", "--seed", "3", cwd=unfinished)
    assert run.returncode == 1
    assert run.stderr.splitlines() == [
        "error: model.spm.safetensors.ledger: belongs to an unfinished fit with seed 0 (now 3); steps 3000 (now 200); "
        "repeat that command to finish it, or delete the folder to begin anew"
    ]
    write_model(unfinished / "model.safetensors", seed=1)
    run = spm("fit", "model.safetensors", "--steps", "3000", cwd=unfinished)
    assert run.returncode == 1
    assert "an unfinished fit with model.safetensors " in run.stderr
    recipe = unfinished / "model.spm.safetensors.ledger" / "recipe.json"
    write_model(unfinished / "model.safetensors")
    value = json.loads(recipe.read_text())
    value["versions"]["spm_compress"] = "0.0.1"
    recipe.write_text(json.dumps(value))
    run = spm("fit", "model.safetensors", "--steps", "3000", cwd=unfinished)
    assert run.returncode == 1
    assert "an unfinished fit with spm_compress 0.0.1 (now " in run.stderr


def test_two_runs_of_one_output_do_not_meet(folder: Path) -> None:
    fit = begin(folder, 100000)
    while not (folder / "model.spm.safetensors.ledger" / "recipe.json").exists():
        assert fit.poll() is None
        time.sleep(0.02)
    try:
        run = spm("fit", "model.safetensors", cwd=folder)
        assert run.returncode == 1
        assert run.stderr.splitlines() == [
            "error: model.spm.safetensors: another run is writing it; wait until it is done, or name another file "
            "with --output"
        ]
        assert (
            spm("fit", "model.safetensors", "--steps", "5", "-o", "other.spm.safetensors", cwd=folder).returncode == 0
        )
    finally:
        fit.kill()
        fit.communicate()


def test_a_model_that_changes_meanwhile_is_noticed(folder: Path) -> None:
    fit = begin(folder, 1500)
    while not list(folder.glob("*.ledger/*.spm.safetensors")):
        assert fit.poll() is None
        time.sleep(0.02)
    write_model(folder / "new.safetensors", seed=1)
    (folder / "new.safetensors").replace(folder / "model.safetensors")
    _, stderr = fit.communicate(timeout=120)
    assert fit.returncode == 1
    assert "changed while" in stderr.splitlines()[-1]
    assert "nothing was written" in stderr.splitlines()[-1]
    assert not (folder / "model.spm.safetensors").exists()


def test_some_weights_are_fitted_anew(folder: Path) -> None:
    assert spm("fit", "model.safetensors", "--steps", "20", cwd=folder).returncode == 0
    before = read_artifact(folder / "model.spm.safetensors")
    again = spm(
        "fit", "model.safetensors", "--steps", "20", "--stages", "4", "--refit", "layer.[12].*", "--json", cwd=folder
    )
    assert again.returncode == 0, again.stderr
    after = read_artifact(folder / "model.spm.safetensors")
    assert [layer.name for layer in after.layers] == [layer.name for layer in before.layers]
    stages = {layer.name: layer.form.summary["stages"] for layer in after.layers}
    assert stages == {f"layer.{i}.weight": 4 if i in (1, 2) else 10 for i in range(6)}
    for old, new in zip(before.layers, after.layers, strict=True):
        same = old.form == new.form and all(
            torch.equal(array, new.operator.arrays[name]) for name, array in old.operator.arrays.items()
        )
        assert same == (new.name not in ("layer.1.weight", "layer.2.weight"))
    wrong = spm("fit", "model.safetensors", "--refit", "layr.*", cwd=folder)
    assert wrong.returncode == 2
    assert "--refit" in wrong.stderr
    write_model(folder / "model.safetensors", seed=1)
    wrong = spm("fit", "model.safetensors", "--refit", "layer.1.*", cwd=folder)
    assert wrong.returncode == 1
    assert "belongs to another model" in wrong.stderr


def ray_workers(mark: str) -> list[int]:
    """Return the processes with a task in hand whose environment has the mark."""
    found = []
    for status in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if status.read_bytes().startswith(b"ray::_run") and f"SPM_TEST={mark}\0".encode() in (
                status.with_name("environ").read_bytes()
            ):
                found.append(int(status.parent.name))
        except OSError:  # gone meanwhile
            continue
    return found


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="finds workers through /proc")
@pytest.mark.slow
@pytest.mark.parametrize("ship", [[], ["--ship-weights"]])
def test_workers_of_ray_give_the_same_bytes_though_one_is_killed(folder: Path, ship: list[str]) -> None:
    pytest.importorskip("ray")
    steps = ("--steps", "500")
    assert spm("fit", "model.safetensors", *steps, "-o", "one.spm.safetensors", cwd=folder).returncode == 0
    mark = str(os.getpid()) + ("s" if ship else "")
    arguments = ["-o", "ray.spm.safetensors", "--executor", "ray", "--jobs", "3", *ship]
    fit = subprocess.Popen(
        [*COMMAND, "fit", "model.safetensors", *steps, *arguments],
        cwd=folder,
        stderr=subprocess.PIPE,
        text=True,
        # Ray lets its workers wait for whatever else runs, which here are the other tests.
        env={**os.environ, "SPM_TEST": mark, "RAY_worker_niceness": "0"},
    )
    workers: list[int] = []
    while fit.poll() is None and not workers:
        workers = ray_workers(mark)
        time.sleep(0.02)
    os.kill(workers[0], signal.SIGKILL)
    _, stderr = fit.communicate(timeout=240)
    assert fit.returncode == 0, stderr
    assert digest(folder / "one.spm.safetensors") == digest(folder / "ray.spm.safetensors")
    assert sum(" error " in line for line in stderr.splitlines()) == 6


def test_several_processes_give_the_same_bytes(folder: Path) -> None:
    assert spm("fit", "model.safetensors", "--steps", "60", "-o", "one.spm.safetensors", cwd=folder).returncode == 0
    run = spm("fit", "model.safetensors", "--steps", "60", "-o", "two.spm.safetensors", "--jobs", "3", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert digest(folder / "one.spm.safetensors") == digest(folder / "two.spm.safetensors")
    assert sum(" error " in line for line in run.stderr.splitlines()) == 6
