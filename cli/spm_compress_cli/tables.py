"""Results on stdout: tables for people, JSON on request."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich import box
from rich.console import Console
from rich.table import Table

from spm_compress.units import bytes_text

if TYPE_CHECKING:
    from spm_compress.report import Savings, Size

# Wide enough for every row when nobody's terminal limits it.
_PIPED_WIDTH = 160


def results_console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPED_WIDTH)


def print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def show_report(savings: Savings, path: Path, as_json: bool) -> None:
    """Print every layer, the totals, the reasons of the tensors left dense, and the verdict."""
    if not as_json:
        console = results_console()
        console.print(_layers(savings))
        console.print(_kept(savings))
    show_totals(savings, path, as_json)


def show_totals(savings: Savings, path: Path, as_json: bool, scores: Mapping[str, float] | None = None) -> None:
    """Print the totals, the verdict, and the user's own scores of the models if there are some."""
    from spm_compress.report import to_json

    if as_json:
        print_json({"artifact": str(path), **to_json(savings), "scores": scores or None})
        return
    console = results_console()
    table = Table(title=f"{path}: {len(savings.layers)} weights fitted", title_justify="left")
    table.add_column("")
    for heading in ("before", "after", "kept", "removed"):
        table.add_column(heading, justify="right")
    _add(table, "parameters, fitted weights", savings.fitted_parameters, "{:,}".format)
    _add(table, "parameters, whole model", savings.model_parameters, "{:,}".format)
    _add(table, "bytes, fitted weights", savings.fitted_bytes, bytes_text)
    _add(table, "bytes, whole model on disk", savings.model_bytes, bytes_text)
    _add(table, "multiply-adds a row, fitted", savings.fitted_multiply_adds, "{:,}".format)
    console.print(table)
    console.print(
        f"mean relative weight error {savings.mean_error:.3f}; "
        f"truncated SVD of the same size {savings.mean_svd_error:.3f}"
    )
    if savings.mean_output_error is not None:
        console.print(
            f"mean relative error of the outputs {savings.mean_output_error:.3f}; "
            f"truncated SVD of the same size, weighted in the same way, {savings.mean_svd_output_error:.3f}"
        )
    if savings.recovery is not None:
        console.print(
            f"trained for {savings.recovery.steps} steps on {savings.recovery.data}: agreement with the original on "
            f"held-out data {savings.recovery.before:.3f} before, {savings.recovery.after:.3f} after"
        )
    if scores:
        console.print(scores_text(scores))
    console.print(savings.verdict)


def scores_text(scores: Mapping[str, float]) -> str:
    return "score: " + ", ".join(f"{which} {score:.4g}" for which, score in scores.items())


def compact_table() -> Table:
    """Return a table that spends few columns on lines."""
    return Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)


def _layers(savings: Savings) -> Table:
    table = Table(title="fitted weights", title_justify="left")
    table.add_column("weight", overflow="fold")
    headings = ["shape", "stages", "rank", "parameters", "bytes", "kept", "multiply-adds", "error", "SVD error"]
    if savings.mean_output_error is not None:
        headings += ["output error", "SVD"]
    for heading in headings:
        table.add_column(heading, justify="right")
    for layer in savings.layers:
        table.add_row(
            layer.name,
            f"{layer.shape[0]}x{layer.shape[1]}",
            str(layer.stages),
            str(layer.rank or "-"),
            f"{layer.parameters.before:,} > {layer.parameters.after:,}",
            f"{layer.bytes.before:,} > {layer.bytes.after:,}",
            f"{layer.bytes.kept:.1%}",
            f"{layer.multiply_adds.before:,} > {layer.multiply_adds.after:,}",
            f"{layer.error:.3f}",
            f"{layer.svd_error:.3f}",
            *([] if savings.mean_output_error is None else map(_figure, (layer.output_error, layer.svd_output_error))),
        )
    return table


def _figure(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"


def _kept(savings: Savings) -> Table:
    table = Table(title="tensors left as they are", title_justify="left")
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("bytes", justify="right")
    table.add_column("reason", overflow="fold")
    for kept in savings.kept:
        table.add_row(kept.name, "x".join(map(str, kept.shape)), f"{kept.bytes:,}", kept.reason)
    return table


def _add(table: Table, title: str, size: Size, form: Any) -> None:
    table.add_row(title, form(size.before), form(size.after), f"{size.kept:.1%}", f"{size.removed:.1%}")
