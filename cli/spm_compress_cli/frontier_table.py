"""Our files beside the original and its rivals, in a table; what is dominated; who was left out, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from spm_compress.units import bytes_text
from spm_compress_cli.bench_tables import duration_text
from spm_compress_cli.console import results_console
from spm_compress_cli.tables import print_json, show_table

if TYPE_CHECKING:
    from spm_compress.pipeline.standing import Frontier, Standing

_MEASURES = {
    "similarities": "rank correlation with the original of the similarities of all pairs of samples",
    "answers": "share of answers that are the original's",
    "numbers": "rank correlation of the answers with the original's",
}


def show_frontier(frontier: Frontier, as_json: bool) -> None:
    """Print a row a file; of latencies the narrow terminal keeps the largest size, of the rest bytes and agreement."""
    from spm_compress.pipeline.frontier import frontier_json

    if as_json:
        print_json(frontier_json(frontier))
        return
    console = results_console()
    has_sequence = any(sequence is not None for _, sequence in frontier.shapes)
    latencies = [f"{batch}x{sequence}" if has_sequence else f"batch {batch}" for batch, sequence in frontier.shapes]
    has_score = any(each.score is not None for each in frontier.standings)
    headings = ("file", "bytes", "agreement", *(["score"] if has_score else []), *latencies, "load", "memory")
    rows = [_row(each, has_score) for each in frontier.standings]
    show_table(console, headings, rows, spare=(*latencies[:-1], "load", "memory"))
    size = "batch x sequence" if has_sequence else "batch"
    threads = frontier.settings["threads"]
    console.print(f"latency: median at {size}, {threads or 'all'} thread{'' if threads == 1 else 's'}, all interleaved")
    console.print(f"agreement: {_MEASURES[frontier.measure]}, {frontier.samples} samples")
    for each in frontier.standings:
        if each.kind == "ours" and (better := frontier.dominated_by(each.name)):
            console.print(f"{each.name}: dominated by {', '.join(better)}")
    for gone in frontier.left_out:
        console.print(f"{gone.name}: left out ({gone.why})")


def _row(each: Standing, has_score: bool) -> list[str]:
    score = [] if not has_score else ["-" if each.score is None else f"{each.score:.4g}"]
    return [
        each.name,
        bytes_text(each.bytes),
        f"{each.agreement:.3f}",
        *score,
        *map(duration_text, each.seconds),
        duration_text(each.load_seconds),
        bytes_text(each.peak_bytes),
    ]
