"""How far a fit is, on stderr: two bars on a terminal, a line a layer anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Column

from spm_compress_cli.console import messages_console
from spm_compress_cli.printable import printable
from spm_compress_cli.verbosity import Verbosity

if TYPE_CHECKING:
    from spm_compress.checkpoint import FittedLayer
    from spm_compress.compress import Progress as FitProgress
    from spm_compress.fitting import StepReport


def message(text: str, verbosity: Verbosity) -> None:
    """Say one line on stderr unless told to be quiet."""
    if verbosity > Verbosity.QUIET:
        messages_console().print(text, soft_wrap=True)


def tell_left_out(model: Path, kept: Mapping[str, str], verbosity: Verbosity) -> None:
    """Say which tensors of a model stay because they are quantized already; kept: name -> reason of all that stay."""
    from spm_compress.checkpoint import left_out

    for line in left_out(kept):
        message(f"{model}: {line}", verbosity)


@contextmanager
def follow(verbosity: Verbosity) -> Iterator[FitProgress]:
    """Yield what a fit reports to."""
    from spm_compress.compress import Silent

    console = messages_console()
    if verbosity is Verbosity.QUIET:
        yield Silent()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console, verbosity)
    else:
        with bars_on(console) as bars:
            yield _Bars(bars, _Lines(console, verbosity) if verbosity is Verbosity.VERBOSE else None)


def bars_on(console: Console, *, disable: bool = False) -> Progress:
    """Return bars that fit a terminal: where it is narrow, without what is drawn, then without the time left."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True))
    ]
    if console.width >= _WIDE:
        columns.append(BarColumn(bar_width=16))
    columns += [
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False, table_column=Column(no_wrap=True)),
    ]
    if console.width >= _NARROW:
        columns.append(TimeRemainingColumn(compact=True))
    return Progress(*columns, console=console, transient=True, expand=True, disable=disable)


_WIDE, _NARROW = 70, 50


class _Lines:
    """A line for every layer that is done; if verbose, one for every batch that is begun, too."""

    def __init__(self, console: Console, verbosity: Verbosity) -> None:
        self.console = console
        self.verbose = verbosity is Verbosity.VERBOSE
        self.layers = self.done = 0

    def begin(self, layers: int) -> None:
        self.layers, self.done = layers, 0

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        if self.verbose:
            self._print(f"fitting {len(names)} of {shape[0]}x{shape[1]}: {', '.join(names)}")

    def step(self, report: StepReport) -> None:
        pass

    def layer(self, layer: FittedLayer) -> None:
        self.done += 1
        out, into = layer.shape
        outputs = "" if layer.output_error is None else f", of its outputs {layer.output_error:.3f}"
        how = ""
        if self.verbose:
            from spm_compress.forms.form import form_text

            form = form_text(layer.form.kind, layer.form.summary)
            how = f"; {form}; {layer.steps} steps from a {layer.start} start"
            how += f", {layer.restarts} restarts, {layer.stored_bytes:,} bytes"
        svd = "" if layer.svd_error is None else f" (same-size SVD {layer.svd_error:.3f})"
        self._print(f"[{self.done}/{self.layers}] {layer.name} {out}x{into} error {layer.error:.3f}{svd}{outputs}{how}")

    def _print(self, line: str) -> None:
        self.console.print(line, soft_wrap=True)


class _Bars:
    """One bar for the model, one for the batch of layers in hand; lines: what is told above them."""

    def __init__(self, bars: Progress, lines: _Lines | None) -> None:
        self.bars, self.lines = bars, lines
        self.model = bars.add_task("model", total=None, note="")
        self.hand = bars.add_task("", total=None, note="")

    def begin(self, layers: int) -> None:
        self.bars.reset(self.model, total=layers)
        if self.lines:
            self.lines.begin(layers)

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        others = f" +{len(names) - 1}" if len(names) > 1 else ""
        name = printable(names[0].removesuffix(".weight"), self.bars.console.encoding)
        description = f"{shape[0]}x{shape[1]}{others} {name}"
        self.bars.reset(self.hand, description=description, note="")
        if self.lines:
            self.lines.batch(names, shape)

    def step(self, report: StepReport) -> None:
        self.bars.update(self.hand, completed=report.step, total=report.steps, note=f"error {report.error:.3f}")

    def layer(self, layer: FittedLayer) -> None:
        self.bars.advance(self.model)
        self.bars.update(self.model, note=f"last {layer.error:.3f}")
        if self.lines:
            self.lines.layer(layer)
