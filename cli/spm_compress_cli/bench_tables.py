"""What `bench` measured, in tables of at most 80 columns."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from spm_compress.units import bytes_text
from spm_compress_cli.console import results_console
from spm_compress_cli.tables import compact_table, print_json

if TYPE_CHECKING:
    from spm_compress.export.measuring.footprint import Footprint
    from spm_compress.export.measuring.latency import Bench, Latency


def show_bench(bench: Bench, as_json: bool) -> None:
    """Print size, load time and memory, then a table of latencies for each provider and number of threads."""
    from spm_compress.export.measuring.footprint import PROCESSES
    from spm_compress.export.measuring.latency import bench_json

    if as_json:
        print_json(bench_json(bench))
        return
    console = results_console()
    console.print(f"model    {bench.model}", soft_wrap=True)
    if bench.against is not None:
        console.print(f"against  {bench.against}", soft_wrap=True)
        console.print("ratio    against / model: above 1, the model is faster or takes less")
    console.print(_loads(bench))
    largest = max(bench.latencies, key=lambda latency: (latency.batch, latency.sequence or 0))
    sequence = "" if largest.sequence is None else f", sequence {largest.sequence}"
    console.print(f"load: median of {PROCESSES} fresh processes; file already in the system's cache")
    console.print("memory: peak of a fresh process that loads the model and runs it once")
    console.print(f"(batch {largest.batch}{sequence}), less what it had before loading")
    for (provider, threads), latencies in itertools.groupby(
        bench.latencies, lambda each: (each.provider, each.threads)
    ):
        console.print()
        console.print(f"{provider}, {threads} thread{'s' if threads > 1 else ''}")  # a table's title wraps
        console.print(_latencies(list(latencies)))


def _loads(bench: Bench) -> Table:
    table = compact_table()
    table.add_column("")
    table.add_column("model", justify="right")
    if bench.against is not None:
        table.add_column("against", justify="right")
        table.add_column("ratio", justify="right")
    for load in bench.loads:
        for title, field in (("file size", "bytes"), ("load", "load"), ("memory", "peak_memory")):
            if field == "bytes" and load is not bench.loads[0]:
                continue  # the same for every provider
            found = [_footprint_text(each, field) for each in (load.model, load.against) if each is not None]
            ratio = [] if load.against is None else [ratio_text(load.ratio(field))]
            where = "" if field == "bytes" or len(bench.loads) == 1 else f", {load.provider}"
            table.add_row(title + where, *found, *ratio)
    return table


def _latencies(latencies: Sequence[Latency]) -> Table:
    has_sequence = any(latency.sequence is not None for latency in latencies)
    compared = any(latency.against is not None for latency in latencies)
    table = compact_table()
    for heading in ("batch", *(["sequence"] if has_sequence else []), "model", "p90"):
        table.add_column(heading, justify="right")
    for heading in ("against", "p90", "ratio") if compared else ():
        table.add_column(heading, justify="right")
    for latency in latencies:
        cells = [str(latency.batch), *([str(latency.sequence)] if has_sequence else [])]
        for timing in (latency.model, latency.against):
            if timing is not None:
                cells += [duration_text(timing.median), duration_text(timing.p90)]
        table.add_row(*cells, *([ratio_text(latency.ratio)] if compared else []))
    return table


def _footprint_text(footprint: Footprint, field: str) -> str:
    return duration_text(footprint.load) if field == "load" else bytes_text(getattr(footprint, field))


def duration_text(seconds: float) -> str:
    """Three figures and a unit: 8.31 us, 83.1 ms, 1.20 s."""
    value, unit = seconds * 1e6, "us"
    for larger in ("ms", "s"):
        if value < 999.5:
            break
        value, unit = value / 1000, larger
    return f"{_three_figures(value)} {unit}"


def ratio_text(ratio: float | None) -> str:
    return "-" if ratio is None else _three_figures(ratio)


def _three_figures(value: float) -> str:
    decimals = 2 if value < 9.995 else 1 if value < 99.95 else 0
    return f"{value:,.{decimals}f}"
