"""`spm-compress bench`."""

from __future__ import annotations

from pathlib import Path

import click

from spm_compress_cli.sizes import Sizes


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--against", type=click.Path(path_type=Path), help="ONNX file to compare with, timed in the same run.")
@click.option("--batch", "batches", type=Sizes(), help="Batch sizes.  [default: 1,8,64]")
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
@click.option(
    "--repeats", type=click.IntRange(min=3), default=30, show_default=True, help="Timed runs of each model and size."
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Stop repeating a size after this; three runs are always timed.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the random inputs.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def bench(
    model: Path | None,
    against: Path | None,
    batches: tuple[int, ...] | None,
    sequences: tuple[int, ...] | None,
    providers: tuple[str, ...],
    threads: tuple[int, ...],
    repeats: int,
    seconds: float,
    seed: int,
    as_json: bool,
    quiet: bool,
) -> None:
    """Time an ONNX MODEL with ONNX Runtime: latency, load time, memory, size.

    With --against, both models run in turns, and a ratio above 1 means that MODEL is faster or takes less.
    """
    if model is None:
        raise click.UsageError("name an ONNX file to time")
    from spm_compress.export.latency import BenchSettings, measure
    from spm_compress_cli.bench_tables import show_bench
    from spm_compress_cli.progress import message

    default = BenchSettings()
    settings = BenchSettings(
        providers=tuple(dict.fromkeys(providers)),
        threads=threads,
        batches=batches or default.batches,
        sequences=sequences or default.sequences,
        repeats=repeats,
        seconds=seconds,
        seed=seed,
    )
    measured = measure(model, against, settings, lambda line: message(line, quiet))
    if sequences and measured.latencies[0].sequence is None:
        message(f"{model}: has no dynamic axis but the batch; --sequence is not used", quiet)
    if batches and measured.latencies[0].batch not in batches:
        message(f"{model}: has a fixed batch of {measured.latencies[0].batch}; --batch is not used", quiet)
    show_bench(measured, as_json)
