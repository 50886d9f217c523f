"""What `diff` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from spm_compress.units import bytes_text
from spm_compress_cli.console import results_console
from spm_compress_cli.tables import print_json, show_table

if TYPE_CHECKING:
    from spm_compress.report.difference import Difference, Layer


def show_difference(found: Difference, as_json: bool) -> None:
    """Print the totals, then the settings and the weights that differ."""
    from spm_compress.report.difference import difference_json

    if as_json:
        print_json(difference_json(found))
        return
    console = results_console()
    _show_totals(console, found)
    if found.settings:
        rows = [(key, before or "-", after or "-") for key, (before, after) in found.settings.items()]
        show_table(console, ("setting", "A", "B"), rows, texts=("A", "B"))
    if found.layers:
        layers = [(name, *_cells(first), *_cells(second)) for name, (first, second) in found.layers.items()]
        each = ("form", "bytes", "bits", "error")
        headings = ("weight", *(f"{side}\n{what}" for side in "AB" for what in each))
        show_table(console, headings, layers, spare=("A\nbytes", "B\nbytes", "A\nbits", "B\nbits"))
    console.print(f"{found.same} weights are the same in both, {len(found.layers)} differ")


def _show_totals(console: Console, found: Difference) -> None:
    rows = []
    for name, pair in found.totals.items():
        if pair.a is None and pair.b is None:
            continue
        form = bytes_text if name.startswith("bytes") else _figure
        change = None if pair.a is None or pair.b is None else pair.b - pair.a
        sign = "" if change is None else "-" if change < 0 else "+"
        cells = ["-" if value is None else form(value) for value in (pair.a, pair.b)]
        rows.append((name, *cells, "-" if change is None else f"{sign}{form(abs(change))}"))
    console.print(f"A: {found.a.name}", soft_wrap=True)
    console.print(f"B: {found.b.name}", soft_wrap=True)
    show_table(console, ("", "A", "B", "B - A"), rows)


def _cells(layer: Layer | None) -> tuple[str, str, str, str]:
    if layer is None:
        return "dense", "-", "-", "-"
    return layer.form, bytes_text(layer.bytes), f"{layer.bits:.2f}", f"{layer.error:.3f}"


def _figure(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.3f}"
