"""How far a training is, on stderr and in a log of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from spm_compress.errors import SpmError
from spm_compress_cli.console import messages_console
from spm_compress_cli.progress import bars_on
from spm_compress_cli.verbosity import Verbosity

if TYPE_CHECKING:
    from spm_compress.distill import TrainingReport as Training

_Show = Callable[["Training"], None]


@contextmanager
def follow_training(verbosity: Verbosity, log: Path | None) -> Iterator[_Show]:
    """Yield what a training reports to: a bar on a terminal, a line at each look at the held-out data anywhere else."""
    console = messages_console()
    written = _Log(log) if log is not None else None
    has_bars = console.is_terminal and not console.is_dumb_terminal and verbosity is not Verbosity.QUIET
    has_lines = verbosity is Verbosity.VERBOSE or (verbosity is Verbosity.NORMAL and not has_bars)
    bars = bars_on(console, disable=not has_bars)
    task = bars.add_task("training", total=None, note="")

    def show(report: Training) -> None:
        if written is not None:
            written.add(report)
        note = f"loss {report.loss:.4f}, held out {report.best:.3f}, {report.rows:.0f} rows/s"
        bars.update(task, description=report.stage, completed=report.step, total=report.steps, note=note)
        if has_lines and report.held_out is not None:
            console.print(
                f"[{report.step}/{report.steps}] {report.stage}: loss {report.loss:.4f}, held out "
                f"{report.held_out:.3f} (best {report.best:.3f}), {report.rows:.0f} rows/s",
                soft_wrap=True,
            )

    with bars:
        yield show


class _Log:
    """A line for each look at the held-out data; resumed, what came after the state is written anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.begun = False

    def add(self, report: Training) -> None:
        try:
            if not self.begun:
                self.begun = True
                self._keep_before(report.step)
            if report.held_out is not None:
                with self.path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(asdict(report)) + "\n")
        except (OSError, ValueError, KeyError) as error:
            raise SpmError(f"{self.path}: cannot be written as a log ({error}); choose another name") from error

    def _keep_before(self, step: int) -> None:
        lines = self.path.read_text(encoding="utf-8").splitlines() if step > 1 and self.path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] < step]
        self.path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
