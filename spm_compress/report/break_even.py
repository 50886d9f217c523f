"""The map of widths and batches at which an SPM layer beats the dense one, as data, JSON and a picture."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spm_compress.checkpoint.files import write_whole
from spm_compress.checkpoint.outputs import require_file_name
from spm_compress.errors import SpmError, UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, LogNorm
    from matplotlib.figure import Figure

__all__ = ["BreakEven", "Cell", "Setting", "break_even_json", "check_picture", "draw", "figure_of", "read_break_even"]

SCHEMA = "spm-compress/break-even/1"
_FORMATS = (".svg", ".png")


@dataclass(frozen=True)
class Cell:
    """One layer features x features on one batch; seconds of one run.

    float32, int8: the dense layer; lowerings: name -> the SPM, run that way.
    """

    features: int
    batch: int
    float32: float
    int8: float
    lowerings: Mapping[str, float]

    @property
    def best(self) -> str:
        """Name of the fastest lowering."""
        return min(self.lowerings, key=self.lowerings.__getitem__)

    @property
    def fastest(self) -> str:
        """Name of the fastest of all: float32, int8 or a lowering."""
        return min(self.seconds, key=self.seconds.__getitem__)

    @property
    def seconds(self) -> dict[str, float]:
        """All that was timed."""
        return {"float32": self.float32, "int8": self.int8, **self.lowerings}

    def ratio(self, name: str) -> float:
        """Return the time of dense float32 over this one's: above 1 is faster."""
        return self.float32 / self.seconds[name]


@dataclass(frozen=True)
class Setting:
    """What the figures hold for."""

    stages: int
    provider: str
    threads: int
    processor: str
    onnxruntime: str


@dataclass(frozen=True)
class BreakEven:
    """The map: a cell for each width and batch."""

    setting: Setting
    cells: tuple[Cell, ...]


def break_even_json(found: BreakEven) -> dict[str, Any]:
    """Return the map as JSON values, with `schema` as its version."""
    return {
        "schema": SCHEMA,
        "setting": asdict(found.setting),
        "cells": [
            {
                "features": cell.features,
                "batch": cell.batch,
                "seconds": cell.seconds,
                "ratios": {name: cell.ratio(name) for name in cell.seconds},
                "best_lowering": cell.best,
                "fastest": cell.fastest,
            }
            for cell in found.cells
        ],
    }


def read_break_even(value: Mapping[str, Any]) -> BreakEven:
    """Return the map of which `break_even_json` made that value. Raises LookupError or TypeError for another one."""
    cells = []
    for cell in value["cells"]:
        seconds = dict(cell["seconds"])
        dense, int8 = seconds.pop("float32"), seconds.pop("int8")
        cells.append(Cell(cell["features"], cell["batch"], dense, int8, seconds))
    return BreakEven(Setting(**value["setting"]), tuple(cells))


def check_picture(path: Path) -> None:
    """Find out beforehand whether `draw` can write there.

    Raises UsageError for a name that is no .svg or .png or no file's, SpmError if matplotlib is missing.
    """
    require_file_name("`picture`", path)
    if path.suffix.lower() not in _FORMATS:
        raise UsageError(f"`picture` {path}: the name must end in {' or '.join(_FORMATS)}")
    if importlib.util.find_spec("matplotlib") is None:
        raise SpmError(f"{path}: drawing needs matplotlib; install it with: pip install 'spm-compress[report]'")


def draw(found: BreakEven, path: Path) -> None:
    """Write `figure_of` the map; the same map gives the same SVG. Raises as `check_picture`."""
    check_picture(path)
    import matplotlib

    # Without a salt and a date of its own matplotlib names and dates every SVG anew.
    form = path.suffix.lower().removeprefix(".")
    with write_whole(path) as temporary, matplotlib.rc_context({"svg.hashsalt": "spm-compress"}):
        figure_of(found).savefig(temporary, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)


def figure_of(found: BreakEven) -> Figure:
    """Draw the speed-up of the best lowering over dense float32 as a heat map.

    Where dense int8 is faster than that, the cell says so.
    """
    import matplotlib
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    widths = sorted({cell.features for cell in found.cells})
    batches = sorted({cell.batch for cell in found.cells})
    grid = [[math.nan] * len(widths) for _ in batches]
    for cell in found.cells:
        grid[batches.index(cell.batch)][widths.index(cell.features)] = cell.ratio(cell.best)
    # Symmetric about 1, so that white is break-even; at least 2 either way, or noise would look like a result.
    reach = max(2.0, *(max(ratio, 1 / ratio) for row in grid for ratio in row if ratio == ratio))
    norm, colours = LogNorm(1 / reach, reach), matplotlib.colormaps["RdBu"]

    figure = Figure(figsize=(max(7.0, 1.9 + 1.25 * len(widths)), 1.8 + 0.75 * len(batches)), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(grid, cmap=colours, norm=norm, origin="lower", aspect="auto")
    for cell in found.cells:
        _label(axes, cell, (widths.index(cell.features), batches.index(cell.batch)), norm, colours)
    axes.set_xticks(range(len(widths)), [f"{n:,}" for n in widths])
    axes.set_yticks(range(len(batches)), [f"{n:,}" for n in batches])
    axes.set_xlabel("features n of the n x n layer")
    axes.set_ylabel("batch (rows)")
    axes.set_xticks([i + 0.5 for i in range(len(widths) - 1)], minor=True)
    axes.set_yticks([i + 0.5 for i in range(len(batches) - 1)], minor=True)
    axes.grid(which="minor", color="white", linewidth=2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(_title(found.setting), loc="left", fontsize=11, fontweight="bold")
    figure.supxlabel(_caption(found.setting), fontsize=7, color="0.35", x=0.01, ha="left")
    bar = figure.colorbar(image, ax=axes, label="times as fast as dense float32")
    bar.ax.yaxis.set_major_locator(LogLocator(2))
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if value >= 1 else f"1/{1 / value:g}"))
    bar.outline.set_visible(False)
    return figure


def _label(axes: Axes, cell: Cell, at: tuple[int, int], norm: LogNorm, colours: Colormap) -> None:
    ratio = cell.ratio(cell.best)
    red, green, blue, _ = colours(float(norm(ratio)))
    ink = "white" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.5 else "black"
    lines = [(f"{_figures(ratio)}x", 6, 11.0), (cell.best, -7, 6.5)]
    if cell.int8 < cell.lowerings[cell.best]:
        lines.append((f"dense int8: {_figures(cell.ratio('int8'))}x", -17, 6.5))
    for text, height, size in lines:
        axes.annotate(
            text, at, (0, height), textcoords="offset points", ha="center", color=ink, fontsize=size, zorder=3
        )


def _figures(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 9.995 else f"{ratio:.1f}" if ratio < 99.95 else f"{ratio:,.0f}"


def _title(setting: Setting) -> str:
    return f"Speed of an SPM layer ({setting.stages} stages) over the dense layer"


def _caption(setting: Setting) -> str:
    threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
    return (
        "Each cell: its fastest lowering (dense: multiplied out at load, then the same product), "
        "and dense int8 where that is faster still.\n"
        f"{setting.processor}, {threads}, {setting.provider}, ONNX Runtime {setting.onnxruntime}"
    )
