"""What `bench --sweep` found, in a table of at most 80 columns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from spm_compress_cli.bench_tables import duration_text, ratio_text
from spm_compress_cli.console import results_console
from spm_compress_cli.tables import compact_table, print_json

if TYPE_CHECKING:
    from spm_compress.report.break_even import BreakEven, Cell


def show_break_even(found: BreakEven, as_json: bool) -> None:
    """Print a row for each width and batch; a star marks the fastest way to run the layer."""
    from spm_compress.report.break_even import break_even_json

    if as_json:
        print_json(break_even_json(found))
        return
    setting = found.setting
    console = results_console()
    threads = f"{setting.threads} thread{'s' if setting.threads > 1 else ''}"
    console.print(f"n x n layers, SPM of {setting.stages} stages; {setting.provider}, {threads}")
    console.print(f"{setting.processor}, ONNX Runtime {setting.onnxruntime}", soft_wrap=True)
    names = list(found.cells[0].lowerings)
    table = compact_table()
    # A lowering's name a line a word: five of them have to fit.
    for heading in ("n", "batch", "dense\nfloat32", "dense\nint8", *(_stacked(name) for name in names)):
        table.add_column(Text(heading), justify="right")
    previous: Cell | None = None
    for cell in found.cells:
        if previous is not None and previous.features != cell.features:
            table.add_section()
        ratios = [_marked(cell, name) for name in ("int8", *names)]
        table.add_row(f"{cell.features}", f"{cell.batch}", _marked(cell, "float32"), *ratios)
        previous = cell
    console.print(table)
    console.print("float32: time of a run; others: times as fast as float32; *: fastest of the row")


def _stacked(name: str) -> str:
    return name.replace(" ", "\n").replace("-", "-\n")


def _marked(cell: Cell, name: str) -> str:
    text = duration_text(cell.float32) if name == "float32" else ratio_text(cell.ratio(name))
    return f"{text}{'*' if cell.fastest == name else ' '}"
