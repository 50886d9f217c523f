"""What `bench` measured, as tables, JSON, or a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from spm_compress_cli.tables import bytes_text, print_json, results_console

if TYPE_CHECKING:
    from spm_compress.export.break_even import BreakEven
    from spm_compress.export.latency import Latency
    from spm_compress.export.timing import Timing


def show_latency(latency: Latency, as_json: bool) -> None:
    """Print times and costs; the second model's over the first's where there are two."""
    if as_json:
        print_json(_latency_json(latency))
        return
    first, *others = (cost.path for cost in latency.costs)
    has_sequence = any(cell.sequence for cell in latency.cells)
    times = Table(title=f"milliseconds a run, median (p90), {latency.provider}", title_justify="left")
    for heading in ("batch", *(["sequence"] if has_sequence else []), "threads"):
        times.add_column(heading, justify="right")
    for path in (first, *others):
        times.add_column(str(path), justify="right", overflow="fold")
    if others:
        times.add_column("ratio", justify="right")
    for cell in latency.cells:
        sizes = [cell.batch, *([cell.sequence] if has_sequence else []), cell.threads]
        row = [*map(str, sizes), *(_milliseconds(cell.times[path]) for path in (first, *others))]
        if others:
            row.append(f"{cell.times[others[0]].median / cell.times[first].median:.2f}x")
        times.add_row(*row)
    costs = Table(title="besides time", title_justify="left")
    costs.add_column("")
    for path in (first, *others):
        costs.add_column(str(path), justify="right", overflow="fold")
    if others:
        costs.add_column("ratio", justify="right")
    sizes_of = [cost.bytes for cost in latency.costs]
    loads = [cost.load for cost in latency.costs]
    memories = [cost.memory for cost in latency.costs]
    costs.add_row("file", *map(bytes_text, sizes_of), *_ratio(sizes_of))
    costs.add_row("time to load", *(f"{load * 1e3:.0f} ms" for load in loads), *_ratio(loads))
    if all(memory is not None for memory in memories):
        known = [memory for memory in memories if memory is not None]
        costs.add_row("peak memory, largest size", *map(bytes_text, known), *_ratio(known))
    console = results_console()
    console.print(times)
    console.print(costs)


def _milliseconds(timing: Timing) -> str:
    return f"{timing.median * 1e3:.3g} ({timing.p90 * 1e3:.3g})"


def _ratio(values: list[int] | list[float]) -> list[str]:
    return [f"{values[1] / values[0]:.2f}x"] if len(values) > 1 and values[0] else [""] * (len(values) - 1)


def _latency_json(latency: Latency) -> dict[str, Any]:
    first, *others = (cost.path for cost in latency.costs)
    return {
        "schema": "spm-compress/bench/1",
        "provider": latency.provider,
        "models": [
            {
                "path": str(cost.path),
                "bytes": cost.bytes,
                "load_seconds": cost.load,
                "peak_memory_bytes": cost.memory,
            }
            for cost in latency.costs
        ],
        "cells": [
            {
                "batch": cell.batch,
                "sequence": cell.sequence,
                "threads": cell.threads,
                "seconds": [{"median": time.median, "p90": time.p90} for time in cell.times.values()],
                "ratio": cell.times[others[0]].median / cell.times[first].median if others else None,
            }
            for cell in latency.cells
        ],
    }


def show_break_even(found: BreakEven, picture: Path | None, as_json: bool) -> None:
    """Print the map, and draw it where a picture is asked for."""
    from spm_compress.export.break_even import DENSE

    if picture:
        _draw(found, picture)
    if as_json:
        cells = [
            {
                "features": cell.features,
                "batch": cell.batch,
                "seconds": cell.seconds,
                "best": cell.best,
                "speedup": cell.speedup(cell.best),
            }
            for cell in found.cells
        ]
        heading = {"stages": found.stages, "threads": found.threads, "provider": found.provider}
        print_json({"schema": "spm-compress/break-even/1", **heading, "cells": cells})
        return
    table = Table(title=_title(found) + "; times as fast as dense float32", title_justify="left")
    table.add_column("features", justify="right")
    table.add_column("batch", justify="right")
    table.add_column("dense us", justify="right")
    ways = [name for name in found.cells[0].seconds if name != DENSE]
    for name in ways:
        table.add_column(name.replace(" float32", ""), justify="right")
    for cell in found.cells:
        fastest = max(cell.speedup(name) for name in ways)
        ratios = [cell.speedup(name) for name in ways]
        marked = [f"[bold]{ratio:.2f}[/]" if ratio == fastest and ratio > 1 else f"{ratio:.2f}" for ratio in ratios]
        table.add_row(f"{cell.features:,}", f"{cell.batch:,}", f"{cell.seconds[DENSE] * 1e6:,.0f}", *marked)
    results_console().print(table)


def _title(found: BreakEven) -> str:
    threads = f"{found.threads} thread{'s' if found.threads > 1 else ''}"
    return f"square layers in {found.stages} stages, {threads}, {found.provider}"


def _draw(found: BreakEven, picture: Path) -> None:
    from spm_compress.checkpoint.files import write_whole
    from spm_compress.report.break_even import Tile, draw

    tiles = [Tile(cell.features, cell.batch, cell.speedup(cell.best), cell.best) for cell in found.cells]
    with write_whole(picture) as temporary:
        drawn = temporary.with_suffix(picture.suffix)
        draw(tiles, f"Fastest lowering over dense float32: {_title(found)}", drawn)
        drawn.replace(temporary)
