"""The pictures of a report: SVG by matplotlib, whose colours follow the page's light or dark theme."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from spm_compress.report.break_even import BreakEven, figure_of
from spm_compress.report.savings import Savings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["break_even", "curves", "errors", "frontier_by_bytes", "frontier_by_latency", "spectra", "training"]

# Drawn in these, and then named: the page says what each is in light and in dark.
_INK, _FAINT, _SPM, _SVD, _KEPT = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    _INK: "var(--ink)",
    _FAINT: "var(--faint)",
    _SPM: "var(--spm)",
    _SVD: "var(--svd)",
    _KEPT: "var(--kept)",
}
_WIDTH = 7.6  # inches; the page scales it
_HALF = 3.9  # of a picture that has another beside it, and is as wide as a phone


def errors(savings: Savings) -> str:
    """Draw the relative error of every weight, the SVD of equal size beside it, and which matrices stayed dense."""
    dense = [kept for kept in savings.kept if len(kept.shape) == 2]
    layers = savings.layers
    with _drawing("errors", 3.2) as (axes, drawn):
        places = range(len(layers))
        beside = [(i, x.error, x.svd_error) for i, x in enumerate(layers) if x.svd_error is not None]
        if beside:
            at, errors, svds = zip(*beside, strict=True)
            axes.vlines(at, errors, svds, color=_FAINT, linewidth=1)
            axes.plot(at, svds, "_", color=_SVD, markersize=7, label="SVD of equal size")
        axes.plot(places, [x.error for x in layers], "o", color=_SPM, markersize=4, label="as stored")
        if savings.mean_output_error is not None:
            found = [(i, x.output_error) for i, x in enumerate(layers) if x.output_error is not None]
            label = "of the outputs"
            axes.plot(*zip(*found, strict=True), "o", color=_SPM, markersize=4, fillstyle="none", label=label)
        after = range(len(layers), len(layers) + len(dense))
        axes.plot(after, [0.0] * len(dense), "x", color=_KEPT, markersize=4, label="left dense")
        axes.set(xlabel="matrices, in the order of the table", ylabel="relative error", ylim=(-0.05, None))
        axes.legend(frameon=False, ncols=4, loc="lower left", bbox_to_anchor=(0, 1), fontsize=8, labelcolor=_INK)
    return drawn[0]


def curves(found: Mapping[str, Sequence[Mapping[str, float]]], dense: Mapping[str, int]) -> str:
    """Draw the error of every weight at the sizes that the plan tried; dense: its bytes before."""
    with _drawing("curves", 3.2) as (axes, drawn):
        for name, points in found.items():
            ordered = sorted(points, key=lambda point: point["bytes"])
            shares = [point["bytes"] / dense[name] for point in ordered]
            axes.plot(shares, [point["error"] for point in ordered], color=_SPM, linewidth=0.8, alpha=0.5)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.set(xlabel="share of the weight's bytes", ylabel="relative error", ylim=(0, None), xlim=(0, None))
    return drawn[0]


def spectra(inspection: Mapping[str, Any]) -> str:
    """Draw what truncated SVDs of every weight miss, by their size."""
    with _drawing("spectra", 3.2) as (axes, drawn):
        for layer in inspection["layers"]:
            shares = [size["share"] for size in layer["sizes"]]
            axes.plot(shares, [size["svd_error"] for size in layer["sizes"]], color=_SVD, linewidth=0.8, alpha=0.5)
        axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
        axes.set(xlabel="share of the weight's bytes", ylabel="error of the truncated SVD", ylim=(0, None))
    return drawn[0]


def training(log: Sequence[Mapping[str, Any]]) -> str:
    """Draw the agreement on held-out data of a training, step by step."""
    looks = [line for line in log if line["held_out"] is not None]
    with _drawing("training", 2.6) as (axes, drawn):
        axes.plot(
            [line["step"] for line in looks], [line["held_out"] for line in looks], "-o", color=_SPM, markersize=3
        )
        axes.set(xlabel="step", ylabel="agreement, held out")
    return drawn[0]


def frontier_by_bytes(standings: Sequence[Mapping[str, Any]]) -> str:
    """Draw agreement against bytes, our files as a curve."""
    return _frontier("frontier-bytes", standings, [each["bytes"] / 1e6 for each in standings], "MB")


def frontier_by_latency(standings: Sequence[Mapping[str, Any]], size: str) -> str:
    """Draw agreement against the time of a run at the last shape, called `size`."""
    milliseconds = [1000 * each["seconds"][-1] for each in standings]
    return _frontier("frontier-latency", standings, milliseconds, f"ms a run, {size}")


def _frontier(name: str, standings: Sequence[Mapping[str, Any]], at: Sequence[float], label: str) -> str:
    from matplotlib.ticker import NullLocator

    with _drawing(name, 3.1, _HALF) as (axes, drawn):
        plans = [(x, each["agreement"]) for x, each in zip(at, standings, strict=True) if each["kind"] == "ours"]
        if plans:
            ours = zip(*sorted(plans, key=lambda plan: plan[1]), strict=True)
            axes.plot(*ours, "-o", color=_SPM, markersize=4, linewidth=1, label="ours")
        # A mark each: colours alone are not told apart by everybody, nor in print.
        marks = itertools.cycle("sD^v<>P*")
        for x, each in zip(at, standings, strict=True):
            if each["kind"] != "ours":
                colour, mark = (_KEPT, "X") if each["kind"] == "original" else (_SVD, next(marks))
                axes.plot([x], [each["agreement"]], mark, color=colour, markersize=5, label=each["name"])
        axes.set_xscale("log")
        axes.set_xticks(_ticks(min(at), max(at)))
        axes.xaxis.set_major_formatter(lambda tick, _: f"{tick:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set(xlabel=label, ylabel="agreement")
        axes.legend(frameon=False, ncols=3, loc="lower left", bbox_to_anchor=(-0.1, 1), fontsize=8, labelcolor=_INK)
    return drawn[0]


def _ticks(low: float, high: float) -> list[float]:
    """Return round numbers for a logarithmic axis, five or so."""
    series = [(1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8), (1, 2, 5), (1,)][(high > 3 * low) + (high > 300 * low)]
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [each * 10.0**power for power in powers for each in series if low / 1.2 <= each * 10.0**power <= high * 1.2]


def break_even(found: BreakEven) -> str:
    """Draw the map of a sweep; its colours carry figures, so they are the same in both themes."""
    return _svg("break-even", figure_of(found))


@contextmanager
def _drawing(name: str, height: float, width: float = _WIDTH) -> Iterator[tuple[Axes, list[str]]]:
    """Yield axes, and a list that holds the SVG afterwards."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    drawn: list[str] = []
    yield axes, drawn
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_FAINT)
    axes.tick_params(color=_FAINT, labelcolor=_INK, labelsize=8)
    axes.xaxis.label.set(color=_INK, fontsize=9)
    axes.yaxis.label.set(color=_INK, fontsize=9)
    axes.grid(axis="y", color=_FAINT, linewidth=0.5, alpha=0.4)
    axes.set_axisbelow(True)
    drawn.append(_svg(name, figure))


def _svg(name: str, figure: Figure) -> str:
    """Return the figure as an element for a page: text as text, no background, no size, and ids under its name."""
    import matplotlib

    written = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "spm-compress", "svg.fonttype": "none"}):
        figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    text = text[text.index("<svg") :]
    opening = re.sub(r' (width|height)="[^"]*"', "", text[: text.index(">")])
    text = opening + text[text.index(">") :]
    text = re.sub(r'(id="|url\(#|href="#)', rf"\1{name}-", text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    return text
