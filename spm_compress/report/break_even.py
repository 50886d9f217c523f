"""The break-even map as a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spm_compress.errors import UsageError

__all__ = ["Tile", "draw"]

# A tile this many times as fast, or as slow, has the strongest colour.
_STRONGEST = 16.0


@dataclass(frozen=True)
class Tile:
    """One cell of the map: how many times as fast as the dense layer the fastest way is, and which that is."""

    features: int
    batch: int
    speedup: float
    way: str


def draw(tiles: Sequence[Tile], title: str, path: Path) -> None:
    """Draw a map of widths by batches into an SVG or PNG file; the same tiles give the same bytes.

    Raises UsageError where matplotlib is missing, or for a file name of another kind.
    """
    try:
        import matplotlib
        from matplotlib.colors import LogNorm
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError("--picture needs matplotlib; install it with: pip install 'spm-compress[report]'") from error
    if path.suffix not in (".svg", ".png"):
        raise UsageError(f"--picture {path}: choose a name that ends in .svg or .png")
    widths, batches = sorted({tile.features for tile in tiles}), sorted({tile.batch for tile in tiles})
    grid = [[math.nan] * len(batches) for _ in widths]
    with matplotlib.rc_context({"svg.hashsalt": "spm-compress", "svg.fonttype": "none", "font.size": 9}):
        figure = Figure(figsize=(1.6 + 1.35 * len(batches), 1.3 + 0.62 * len(widths)), layout="constrained")
        axes = figure.add_subplot()
        for tile in tiles:
            row, column = widths.index(tile.features), batches.index(tile.batch)
            grid[row][column] = tile.speedup
            strength = abs(math.log(max(tile.speedup, 1e-9))) / math.log(_STRONGEST)
            ink = "white" if strength > 0.6 else "black"
            label = f"{tile.speedup:.1f}x\n{tile.way}"
            axes.text(column, row, label, ha="center", va="center", color=ink, fontsize=8)
        scale = LogNorm(1 / _STRONGEST, _STRONGEST)
        image = axes.imshow(grid, cmap="RdBu", norm=scale, aspect="auto")
        axes.set_xticks(range(len(batches)), [f"{batch:,}" for batch in batches])
        axes.set_yticks(range(len(widths)), [f"{width:,}" for width in widths])
        axes.set_xlabel("rows (batch x sequence)")
        axes.set_ylabel("features")
        axes.set_title(title, loc="left", fontsize=9)
        bar = figure.colorbar(image, ax=axes, ticks=[1 / 16, 1 / 4, 1, 4, 16])
        bar.ax.set_yticklabels(["16x slower", "4x slower", "as dense", "4x faster", "16x faster"])
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else {"Software": None}, dpi=160)
