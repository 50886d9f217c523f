"""Print the bytes that loading and running an ONNX model adds to a process that has only ONNX Runtime in it.

    python peak_memory.py MODEL INPUTS.npz PROVIDER THREADS

Run as a file of its own, never imported: the libraries of the parent process would hide what is measured.
"""

import resource
import sys
from pathlib import Path

import numpy as np
import onnxruntime


def peak() -> int:
    """Return the largest resident set so far, in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():  # elsewhere ru_maxrss has to do, which can include what the parent process held
        lines = status.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    size = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return size if sys.platform == "darwin" else size * 1024


if __name__ == "__main__":
    model, inputs, provider, threads = sys.argv[1:]
    arrays = dict(np.load(inputs))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(threads)
    options.log_severity_level = 4
    before = peak()
    onnxruntime.InferenceSession(model, options, providers=[provider]).run(None, arrays)
    print(peak() - before)
