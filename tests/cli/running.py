"""The command line in a process of its own, forked from one that has its libraries: importing them takes ten seconds.

What it is as a program, from its first import on, test_commands.py and the tutorial try.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["COMMAND", "CONTEXT", "be_the_command", "spm"]

COMMAND = [sys.executable, "-m", "spm_compress_cli"]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    [
        *("spm_compress.distill", "spm_compress.export", "spm_compress.report", "spm_compress_cli.main"),
        *("spm_compress_cli.tables", "torchlib", "untraced", "transformers.models.auto.modeling_auto"),
        *("transformers.models.auto.tokenization_auto", "transformers.models.bert.modeling_bert", __name__),
    ]
)


def be_the_command(arguments: tuple[str, ...], cwd: Path, stdout: Path, stderr: Path) -> None:
    """Run `spm-compress` with these arguments, and exit as it does."""
    import torch

    from spm_compress_cli.main import main

    for stream, path in ((1, stdout), (2, stderr)):
        with path.open("wb") as file:
            os.dup2(file.fileno(), stream)
    os.chdir(cwd)
    sys.path[0] = ""  # where `python -m` has the working directory
    torch.set_num_threads(1)
    sys.argv = ["spm-compress", *arguments]
    main()


def spm(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run it; return its exit code and what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        stdout, stderr = Path(folder, "stdout"), Path(folder, "stderr")
        process = CONTEXT.Process(target=be_the_command, args=(arguments, cwd, stdout, stderr))
        process.start()
        process.join()
        code = process.exitcode
        process.close()
        assert code is not None
        return subprocess.CompletedProcess(arguments, code, stdout.read_text(), stderr.read_text())
