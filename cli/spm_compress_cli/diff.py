"""`spm-compress diff`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.table import Table

from spm_compress.units import bytes_text
from spm_compress_cli.tables import compact_table, print_json, results_console

if TYPE_CHECKING:
    from spm_compress.report.difference import Difference, Layer


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the difference as JSON.")
def diff(a: Path, b: Path, as_json: bool) -> None:
    """Compare two artifacts, or two reports of --json: sizes, errors, settings, and the weights that differ."""
    from spm_compress.report.difference import compare, difference_json

    found = compare(a, b)
    if as_json:
        print_json(difference_json(found))
        return
    console = results_console()
    console.print(_totals(found))
    if found.settings:
        table = compact_table()
        for heading in ("setting", "A", "B"):
            table.add_column(heading, overflow="fold")
        for key, (before, after) in found.settings.items():
            table.add_row(key, before or "-", after or "-")
        console.print(table)
    if found.layers:
        table = compact_table()
        table.add_column("weight", overflow="fold")
        for heading in ("A: stages", "bytes", "error", "B: stages", "bytes", "error"):
            table.add_column(heading, justify="right")
        for name, (first, second) in found.layers.items():
            table.add_row(name, *_cells(first), *_cells(second))
        console.print(table)
    console.print(f"{found.same} weights are the same in both, {len(found.layers)} differ")


def _totals(found: Difference) -> Table:
    table = compact_table()
    table.add_column("")
    for heading in (f"A {found.a.name}", f"B {found.b.name}", "B - A"):
        table.add_column(heading, justify="right", overflow="fold")
    for name, pair in found.totals.items():
        if pair.a is None and pair.b is None:
            continue
        form = bytes_text if name.startswith("bytes") else "{:.3f}".format if "error" in name else "{:,}".format
        change = None if pair.a is None or pair.b is None else pair.b - pair.a
        sign = "" if change is None else "-" if change < 0 else "+"
        cells = ["-" if value is None else form(value) for value in (pair.a, pair.b)]
        table.add_row(name, *cells, "-" if change is None else f"{sign}{form(abs(change))}")
    return table


def _cells(layer: Layer | None) -> tuple[str, str, str]:
    if layer is None:
        return "dense", "-", "-"
    stages = f"{layer.stages}, rank {layer.rank}" if layer.rank else str(layer.stages)
    return stages, bytes_text(layer.bytes), f"{layer.error:.3f}"
