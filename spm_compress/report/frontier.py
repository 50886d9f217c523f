"""A frontier, read from its JSON, as the page shows it: two pictures and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from spm_compress.errors import UsageError, first_line
from spm_compress.report import pictures
from spm_compress.units import bytes_text

__all__ = ["FrontierView", "frontier_view"]

_MEASURES = {
    "similarities": "rank correlation of the similarities of all pairs of samples with the original's",
    "answers": "share of answers that are the original's",
    "numbers": "rank correlation of the answers with the original's",
}


@dataclass(frozen=True)
class FrontierView:
    """What the page says of a frontier.

    by_bytes, by_latency: SVG elements; rows: cells by heading, the name first; better: name of a file of ours -> names
    of those that dominate it.
    """

    by_bytes: str
    by_latency: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    measure: str
    note: str
    better: Mapping[str, Sequence[str]]
    left_out: Sequence[Mapping[str, str]]


def frontier_view(frontier: Mapping[str, Any]) -> FrontierView:
    """Return a frontier in pictures and words; latency is drawn at the largest size.

    Raises UsageError for JSON that has the schema's name but not its form.
    """
    try:
        return _view(frontier)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"`attached`: what is called a frontier is damaged ({type(error).__name__}: {first_line(error)}); write it "
            "again"
        ) from error


def _view(frontier: Mapping[str, Any]) -> FrontierView:
    standings, shapes = frontier["standings"], frontier["shapes"]
    sizes = [_size(shape) for shape in shapes]
    has_score = any(each["score"] is not None for each in standings)
    latencies = tuple(f"ms at {size}" for size in sizes)
    headings = ("file", "bytes", "agreement", *(("score",) if has_score else ()), *latencies, "load", "memory")
    threads = frontier["settings"]["threads"]
    sequence = "" if shapes[-1]["sequence"] is None else " Sizes are batch x sequence."
    agreement = frontier["agreement"]
    return FrontierView(
        pictures.frontier_by_bytes(standings),
        pictures.frontier_by_latency(standings, sizes[-1]),
        headings,
        tuple((each["kind"], _cells(each, has_score)) for each in standings),
        f"Agreement: {_MEASURES[agreement['measure']]}, on {agreement['samples']} held-out samples.",
        f"All measured in one run, interleaved: ONNX Runtime {frontier['onnxruntime']}, "
        f"{frontier['settings']['provider']}, {threads or 'all'} thread{'' if threads == 1 else 's'}.{sequence}",
        {each["name"]: each["dominated_by"] for each in standings if each["kind"] == "ours" and each["dominated_by"]},
        frontier["left_out"],
    )


def _size(shape: Mapping[str, Any]) -> str:
    sequence = shape["sequence"]
    return f"batch {shape['batch']}" if sequence is None else f"{shape['batch']} x {sequence}"


def _cells(each: Mapping[str, Any], has_score: bool) -> tuple[str, ...]:
    score = () if not has_score else ("" if each["score"] is None else f"{each['score']:.4g}",)
    return (
        each["name"],
        bytes_text(each["bytes"]),
        f"{each['agreement']:.3f}",
        *score,
        *(f"{1000 * seconds:.2f}" for seconds in each["seconds"]),
        f"{each['load_seconds']:.2f} s",
        bytes_text(each["peak_bytes"]),
    )
