"""Runs models in environments of other runtimes, which have numpy and nothing of ours."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

__all__ = ["CPU", "OPENVINO", "Ran", "python_of", "relative_error", "run_models"]

CPU, OPENVINO = "CPUExecutionProvider", "OpenVINOExecutionProvider"
_SCRIPT = Path(__file__).with_name("run_models.py")


@dataclass(frozen=True)
class Ran:
    """version: of ONNX Runtime; answers, errors: by the names of the models."""

    version: str
    answers: Mapping[str, Mapping[str, np.ndarray]]
    errors: Mapping[str, str]


def python_of(variable: str) -> str:
    """Return the interpreter that make names in a variable of the environment."""
    if variable not in os.environ:
        pytest.fail(f"{variable} is not set; make test-runtimes and test-openvino make environments and set it")
    return os.environ[variable]


def run_models(python: str, folder: Path, answers: Path, ending: str = ".onnx", provider: str = CPU) -> Ran:
    """Run NAME<ending> on NAME.npz for all of a folder, with another interpreter; answers: an empty folder."""
    answers.mkdir()
    done = subprocess.run(
        [python, _SCRIPT, folder, ending, provider, answers], capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for path in answers.glob("*.npz"):
        with np.load(path) as arrays:
            found[path.stem] = dict(arrays)
    errors = {path.stem: path.read_text(encoding="utf-8") for path in answers.glob("*.error")}
    return Ran(done.stdout.strip(), found, errors)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Return ||found - expected|| / ||expected||."""
    assert found.shape == expected.shape
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
