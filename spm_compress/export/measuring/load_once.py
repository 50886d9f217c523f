"""A program of its own: load an ONNX model, run it once, print as JSON what that took.

Arguments: model, provider, threads, and a .npz file of inputs (without one the model is only loaded). It is run in a
fresh process by `footprint` and imports nothing of this package, so that the memory is ONNX Runtime's and not torch's.
"""

from __future__ import annotations

import contextlib
import json
import resource
import sys
import time
from pathlib import Path

# Python puts a program's folder first; the neighbours' names (files, graph, timing) must not hide other modules.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

import numpy as np  # noqa: E402
import onnxruntime  # noqa: E402

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _forget_peak() -> int:
    """Return the resident bytes now, and let the peak begin at them where the system can."""
    if not _STATUS.exists():  # macOS: only the peak can be had
        return _peak()
    with contextlib.suppress(OSError):
        _CLEAR.write_text("5", encoding="ascii")
    return _status("VmRSS")


def _peak() -> int:
    """Return the peak of the resident bytes. Linux's ru_maxrss begins at that of the parent, VmHWM does not."""
    if _STATUS.exists():
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> int:
    lines = _STATUS.read_text(encoding="ascii").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def _read(path: str) -> dict[str, list[np.ndarray]]:
    """Return name -> arrays; the file has the arrays by number, as a name could be a word that numpy.savez reserves."""
    arrays: dict[str, list[np.ndarray]] = {}
    with np.load(path) as file:
        for i, name in enumerate(file["names"]):
            arrays.setdefault(str(name), []).append(file[f"arr_{i}"])
    return arrays


def _load_once(model: str, provider: str, threads: str, *inputs: str) -> None:
    given = _read(inputs[0]) if inputs else None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 4
    before = _forget_peak()
    start = time.perf_counter()
    session = onnxruntime.InferenceSession(model, options, providers=[provider])
    load = time.perf_counter() - start
    if given is not None:
        inputs_of = {each.name: each.type for each in session.get_inputs()}
        session.run(
            None,
            {
                name: arrays if inputs_of[name].startswith("seq(") else arrays[0]
                for name, arrays in ((name, given.get(name, [None])) for name in inputs_of)
            },
        )
    print(json.dumps({"load": load, "peak_memory": max(0, _peak() - before)}))


if __name__ == "__main__":
    _load_once(*sys.argv[1:])
