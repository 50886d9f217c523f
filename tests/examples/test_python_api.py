"""The example of the Python path does what its first lines promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "python_api.py"


@pytest.mark.slow
def test_a_network_loses_its_accuracy_to_compression_and_gets_it_back() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = re.findall(r"(\d+) numbers, accuracy (\d\.\d+)", done.stdout)
    numbers, accuracies = zip(*((int(n), float(a)) for n, a in printed), strict=True)
    dense, compressed, trained = accuracies
    assert numbers[1] == numbers[2] < numbers[0] / 5
    assert compressed < dense - 0.05
    assert trained > compressed + (dense - compressed) / 2
