"""stdout and stderr that end no command in a traceback, closed or full, unread or of an ASCII terminal.

1. A stream that was closed when the command began leads nowhere, lest a file that is opened later becomes it.
2. What a stream's encoding has no characters for is escaped.
3. Results that cannot be written to stdout are one error, after all files were written. Where nobody reads on, as
   behind `| head`, the command ends as others do: at once, without a word, with exit code 1.
4. What cannot be written to stderr is lost, and the work goes on.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from spm_compress.errors import SpmError
from spm_compress_cli.printable import printable

__all__ = ["guarded_streams", "say", "silent_stderr"]

_OUT, _ERR = 1, 2


@contextmanager
def guarded_streams() -> Iterator[None]:
    """Put guards in the place of sys.stdout and sys.stderr. What is left in stdout is to be flushed inside."""
    _reopen_closed()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _guarded(sys.stdout, _OUT), _guarded(sys.stderr, _ERR)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Send all that is written to stderr nowhere, also what other libraries, native ones and processes write."""
    sys.stderr.flush()
    kept = os.dup(_ERR)
    _lead_nowhere(_ERR)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(kept, _ERR)
        os.close(kept)


def say(text: str) -> None:
    """Write one line on stderr."""
    print(printable(text, sys.stderr.encoding), file=sys.stderr)


def _reopen_closed() -> None:
    """Open what was closed the wrong way round, so that reading or writing fails as before (as GNU's stdopen does)."""
    for descriptor, mode in ((0, os.O_WRONLY), (_OUT, os.O_RDONLY), (_ERR, os.O_WRONLY)):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, mode)  # the lowest descriptor that is free is this one
    if sys.stdout is None:
        sys.stdout = io.TextIOWrapper(io.FileIO(_OUT, "w", closefd=False))
    if sys.stderr is None:
        sys.stderr = io.TextIOWrapper(io.FileIO(_ERR, "w", closefd=False))


def _guarded(stream: TextIO, descriptor: int) -> TextIO:
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)
    if not isinstance(raw, io.FileIO):  # a console of Windows, or a stream that somebody else put there
        return stream
    guard = _Guard(raw.fileno(), is_stdout=descriptor == _OUT)
    return io.TextIOWrapper(
        io.BufferedWriter(guard) if raw is not buffer else guard,  # `python -u` has no buffer
        encoding=stream.encoding,
        errors="backslashreplace",
        line_buffering=descriptor == _ERR or stream.isatty(),
        write_through=raw is buffer,
    )


class _Guard(io.FileIO):
    """A stream's descriptor. After an error it takes everything, so that nothing is left over to fail at exit."""

    def __init__(self, descriptor: int, *, is_stdout: bool) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.is_stdout, self.is_lost = is_stdout, False

    def write(self, data: Any, /) -> int:
        size = memoryview(data).nbytes
        if self.is_lost or not size:  # click writes nothing to see what a stream takes
            return size
        try:
            return super().write(data)
        except OSError as error:
            self.is_lost = True
            if not self.is_stdout:
                return size
            if isinstance(error, BrokenPipeError):
                raise SystemExit(1) from error
            raise SpmError(f"stdout: cannot be written ({error.strerror})") from error


def _lead_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
