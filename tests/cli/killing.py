"""Fits that are killed with SIGKILL at random moments, for a test and for benchmarks/kills.py."""

from __future__ import annotations

import hashlib
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import torch
from running import CONTEXT, be_the_command
from safetensors.torch import save_file

ARGUMENTS = ("fit", "model.safetensors", "--steps", "300", "--quiet")


def write_model(path: Path, seed: int = 0) -> None:
    """Six weights of six shapes: six batches."""
    draw = torch.Generator().manual_seed(seed)
    shapes = [(64 + 16 * i, 96) for i in range(6)]
    save_file({f"layer.{i}.weight": torch.randn(shape, generator=draw) for i, shape in enumerate(shapes)}, path)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@dataclass(frozen=True)
class Kills:
    """What was found after so many kills; whole: with an output, resumed: that began with fits of an earlier run."""

    kills: int
    resumed: int
    whole: int
    seconds: float


def kill_at_random(folder: Path, kills: int, seed: int = 0, told: Callable[[int], object] = lambda _: None) -> Kills:
    """Fit the model in the folder, killed so many times; told: called with the number of kills so far.

    Asserts after each that there is no output or the very bytes of a run that nobody disturbed, and that no fit which
    was done is lost; and that a run which is left alone ends with those bytes and leaves nothing else behind.
    """
    output = folder / "model.spm.safetensors"
    began = time.perf_counter()
    assert _finished(folder) == 0
    lasts = time.perf_counter() - began
    expected = digest(output)
    output.unlink()
    draw, resumed, whole = random.Random(seed), 0, 0
    for i in range(kills):
        before = _done(folder)
        resumed += before > 0
        run = _fit(folder)
        began_run = time.perf_counter()
        run.start()
        run.join(draw.uniform(0, lasts))
        if run.exitcode == 0:  # the first run had more to load, or the machine has less to do by now
            lasts = min(lasts, time.perf_counter() - began_run)
        run.kill()
        run.join()
        assert output.exists() or _done(folder) >= before, f"kill {i} lost a fit"
        if output.exists():
            assert digest(output) == expected, f"kill {i} left another output"
            whole += 1
            if run.exitcode == 0:
                assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", output.name]
            output.unlink()
        told(i + 1)
    assert _finished(folder) == 0
    assert digest(output) == expected
    assert sorted(path.name for path in folder.iterdir()) == ["model.safetensors", output.name]
    return Kills(kills, resumed, whole, time.perf_counter() - began)


def _done(folder: Path) -> int:
    return len(list(folder.glob("*.ledger/*.spm.safetensors")))


def _finished(folder: Path) -> int | None:
    run = _fit(folder)
    run.start()
    run.join()
    return run.exitcode


def _fit(folder: Path) -> ForkServerProcess:
    nowhere = Path(os.devnull)
    return CONTEXT.Process(target=be_the_command, args=(ARGUMENTS, folder, nowhere, nowhere))
