"""A terminal of a given width for a program to write to, for a test and for docs/site/terminal.py."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from collections.abc import Mapping, Sequence
from pathlib import Path

__all__ = ["in_pseudo_terminal"]


def in_pseudo_terminal(
    command: Sequence[str], cwd: Path, environment: Mapping[str, str], columns: int
) -> tuple[int, str]:
    """Run a program; return its exit code and all that it wrote, stdout and stderr together."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={"TERM": "xterm-256color", **environment},
    )
    os.close(theirs)
    written = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # Linux's way to say that nobody holds the other end any more
            break
        if not part:
            break
        written += part
    os.close(ours)
    return process.wait(), written.decode()
