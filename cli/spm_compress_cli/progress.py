"""How far a fit is, on stderr: two bars on a terminal, a line a layer anywhere else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from spm_compress.checkpoint import FittedLayer
    from spm_compress.compress import Progress as FitProgress
    from spm_compress.fitting import StepReport


def message(text: str, quiet: bool) -> None:
    """Say one line on stderr unless told to be quiet."""
    if not quiet:
        Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)


@contextmanager
def follow(quiet: bool) -> Iterator[FitProgress]:
    """Yield what a fit reports to."""
    from spm_compress.compress import Silent

    console = Console(stderr=True, highlight=False)
    if quiet:
        yield Silent()
    elif not console.is_terminal or console.is_dumb_terminal:
        yield _Lines(console)
    else:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        ) as bars:
            yield _Bars(bars)


class _Lines:
    """A line for every layer that is done."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.layers = self.done = 0

    def begin(self, layers: int) -> None:
        self.layers, self.done = layers, 0

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        pass  # the layers of the batch are about to be told one by one

    def step(self, report: StepReport) -> None:
        pass

    def layer(self, layer: FittedLayer) -> None:
        self.done += 1
        out, into = layer.shape
        outputs = "" if layer.output_error is None else f", of its outputs {layer.output_error:.3f}"
        self.console.print(
            f"[{self.done}/{self.layers}] {layer.name} {out}x{into} error {layer.error:.3f} "
            f"(same-size SVD {layer.svd_error:.3f}){outputs}",
            soft_wrap=True,
            markup=False,
        )


class _Bars:
    """One bar for the model, one for the batch of layers in hand."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.model = bars.add_task("model", total=None, note="")
        self.hand = bars.add_task("", total=None, note="")

    def begin(self, layers: int) -> None:
        self.bars.reset(self.model, total=layers)

    def batch(self, names: Sequence[str], shape: tuple[int, int]) -> None:
        others = f" +{len(names) - 1}" if len(names) > 1 else ""
        description = f"{names[0].removesuffix('.weight')[-36:]}{others} {shape[0]}x{shape[1]}"
        self.bars.reset(self.hand, description=description, note="")

    def step(self, report: StepReport) -> None:
        self.bars.update(self.hand, completed=report.step, total=report.steps, note=f"error {report.error:.3f}")

    def layer(self, layer: FittedLayer) -> None:
        self.bars.advance(self.model)
        self.bars.update(self.model, note=f"last {layer.error:.3f}")
