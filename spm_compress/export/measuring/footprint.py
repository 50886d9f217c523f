"""What a model takes before its first answer: bytes on disk, time to load, memory."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from spm_compress.errors import VerificationError
from spm_compress.export.saving import size_of

__all__ = ["PROCESSES", "Footprint", "footprint", "in_fresh_process"]

_PROGRAM = Path(__file__).with_name("load_once.py")
# A load is too short to trust once; memory is the same every time.
PROCESSES = 3


@dataclass(frozen=True)
class Footprint:
    """bytes: of the file and its data files; load: seconds; peak_memory: bytes.

    load: from file to session in a fresh process, median of PROCESSES, file in the system's cache.
    peak_memory: peak resident bytes of a fresh process that loads the model and runs it once, less its resident
    bytes before loading (Python, numpy, ONNX Runtime and the inputs are not counted).
    """

    bytes: int
    load: float
    peak_memory: int


def footprint(path: Path, inputs: Mapping[str, np.ndarray], provider: str, threads: int) -> Footprint:
    """Load a model in fresh processes and run it once on the inputs. threads: 0 for all cores.

    Raises VerificationError if a process fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        given = Path(folder) / "inputs.npz"
        # A sequence is several arrays of one name, an input that is left out none; strings are not Python's objects.
        named = [(name, x) for name, each in inputs.items() for x in (each if isinstance(each, list) else [each])]
        arrays = [(name, x.astype(str) if x.dtype == object else x) for name, x in named if x is not None]
        np.savez(given, *(x for _, x in arrays), names=np.array([name for name, _ in arrays]))
        first = in_fresh_process([str(path), provider, str(threads), str(given)])
    others = [in_fresh_process([str(path), provider, str(threads)]) for _ in range(PROCESSES - 1)]
    load = float(np.median([each["load"] for each in (first, *others)]))
    return Footprint(size_of(path), load, first["peak_memory"])


def in_fresh_process(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the seconds of `load` and the `peak_memory` of one load. arguments: of the program `load_once`."""
    done = subprocess.run([sys.executable, _PROGRAM, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        last_line = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}; is there enough memory?"])[-1]
        raise VerificationError(f"{arguments[0]}: cannot be loaded and run in a process of its own ({last_line})")
    return dict(json.loads(done.stdout))
