"""`spm-compress bench`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from spm_compress_cli.interruption import if_interrupted, written_since
from spm_compress_cli.output import OutputFile
from spm_compress_cli.sizes import Range, Sizes
from spm_compress_cli.verbosity import Verbosity, verbosity_options


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--against", type=click.Path(path_type=Path), help="ONNX file to compare with, timed in the same run.")
@click.option("--batch", "batches", type=Sizes(), help="Batch sizes.  [default: 1,8,64; with --sweep 1,16,64,256,1024]")
@click.option("--sequence", "sequences", type=Sizes(), help="Sizes of the other dynamic axes.  [default: 16,128]")
@click.option(
    "--provider",
    "providers",
    multiple=True,
    default=["CPUExecutionProvider"],
    show_default=True,
    help="ONNX Runtime's execution provider; repeatable.",
)
@click.option("--threads", type=Sizes(), default="1", show_default=True, help="Numbers of threads.")
@click.option("--sweep", is_flag=True, help="Time layers of many sizes instead of a MODEL: where SPM breaks even.")
@click.option("--features", type=Sizes(), help="With --sweep: widths.  [default: 256,384,768,1536,4096]")
@click.option("--stages", type=click.IntRange(min=1), help="With --sweep: mixing stages of a layer.  [default: 10]")
@click.option("--picture", type=OutputFile(), help="With --sweep: draw the map (.svg or .png).")
@click.option(
    "--repeats",
    type=click.IntRange(min=3),
    help="Timed runs of each model and size.  [default: 30, with --sweep 200]",
)
@click.option(
    "--seconds",
    type=Range(min=0, min_open=True),
    help="Stop repeating a size after this, with three runs at least.  [default: 5, with --sweep 2]",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@verbosity_options
def bench(
    *,
    model: Path | None,
    against: Path | None,
    batches: tuple[int, ...] | None,
    sequences: tuple[int, ...] | None,
    providers: tuple[str, ...],
    threads: tuple[int, ...],
    sweep: bool,
    features: tuple[int, ...] | None,
    stages: int | None,
    picture: Path | None,
    repeats: int | None,
    seconds: float | None,
    seed: int,
    as_json: bool,
    verbosity: Verbosity,
) -> None:
    """Time an ONNX MODEL with ONNX Runtime: latency, load time, memory, size.

    With --against, both models run interleaved, and a ratio above 1 means that MODEL is faster or takes less.
    With --sweep, the break-even map of this machine: random SPM layers against dense ones, by width and batch.
    """
    said = {"batches": batches, "repeats": repeats, "seconds": seconds, "seed": seed}
    if sweep:
        if model or against or sequences:
            raise click.UsageError("--sweep makes its own layers; leave out MODEL, --against and --sequence")
        if len(providers) > 1 or len(threads) > 1:
            raise click.UsageError("--sweep makes one map; give one --provider and one number of --threads")
        more: dict[str, Any] = {"features": features, "stages": stages, "provider": providers[0], "threads": threads[0]}
        _sweep({**more, **said}, picture, as_json, verbosity)
        return
    if features or stages or picture:
        raise click.UsageError("--features, --stages and --picture belong to --sweep")
    if model is None:
        raise click.UsageError("name an ONNX file to time, or give --sweep")
    others = {"sequences": sequences, "providers": tuple(dict.fromkeys(providers)), "threads": threads}
    _measure((model, against), {**others, **said}, as_json, verbosity)


def _given(said: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were given: settings have a value for each of the others."""
    return {name: value for name, value in said.items() if value is not None}


def _measure(models: tuple[Path, Path | None], said: Mapping[str, Any], as_json: bool, verbosity: Verbosity) -> None:
    from spm_compress.export.measuring.latency import BenchSettings, measure
    from spm_compress_cli.bench_tables import show_bench
    from spm_compress_cli.progress import message

    model, against = models
    measured = measure(model, against, BenchSettings(**_given(said)), lambda line: message(line, verbosity))
    if said["sequences"] and measured.latencies[0].sequence is None:
        message(f"{model}: has no dynamic axis but the batch; --sequence is not used", verbosity)
    if said["batches"] and measured.latencies[0].batch not in said["batches"]:
        message(f"{model}: has a fixed batch of {measured.latencies[0].batch}; --batch is not used", verbosity)
    show_bench(measured, as_json)


def _sweep(said: Mapping[str, Any], picture: Path | None, as_json: bool, verbosity: Verbosity) -> None:
    from spm_compress.export.measuring.sweep import SweepSettings, machine, sweep
    from spm_compress.report.break_even import BreakEven, Cell, Setting, check_picture, draw
    from spm_compress_cli.progress import message
    from spm_compress_cli.sweep_table import show_break_even

    if_interrupted(written_since([picture]))
    if picture:
        check_picture(picture)  # a sweep takes a minute; say now what would fail at its end
    settings = SweepSettings(**_given(said))
    cells: list[Cell] = []
    for timed in sweep(settings):
        lowerings = {name: timing.median for name, timing in timed.lowerings.items()}
        cell = Cell(timed.features, timed.batch, timed.float32.median, timed.int8.median, lowerings)
        cells.append(cell)
        place = f"[{len(cells)}/{len(settings.features) * len(settings.batches)}] n {cell.features}, batch {cell.batch}"
        message(f"{place}: {cell.best} runs at {cell.ratio(cell.best):.2f}x of dense", verbosity)
    found = BreakEven(Setting(settings.stages, settings.provider, settings.threads, *machine()), tuple(cells))
    if picture:
        draw(found, picture)
        message(f"{picture}: written", verbosity)
    show_break_even(found, as_json)
