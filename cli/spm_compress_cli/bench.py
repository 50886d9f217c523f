"""`spm-compress bench`."""

from __future__ import annotations

from pathlib import Path

import click

from spm_compress_cli.sizes import Sizes


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@click.option("--against", type=click.Path(path_type=Path), help="ONNX file to compare with, timed in turns.")
@click.option("--sweep", is_flag=True, help="Instead of a model, map from which width and batch on stages are faster.")
@click.option("--batch", "batches", type=Sizes(), help="Batch sizes.  [default: 1,8,64; --sweep: 1,16,64,256,1024]")
@click.option("--sequence", "sequences", type=Sizes(), default="128", show_default=True, help="Sequence lengths.")
@click.option(
    "--features", type=Sizes(), default="256,384,768,1536,4096", show_default=True, help="Layer widths, for --sweep."
)
@click.option("--stages", type=click.IntRange(min=1), default=10, show_default=True, help="Stages, for --sweep.")
@click.option("--threads", type=Sizes(), default="1", show_default=True, help="Numbers of threads.")
@click.option("--provider", default="CPUExecutionProvider", show_default=True, help="ONNX Runtime's provider.")
@click.option(
    "--repeats", type=click.IntRange(min=1), default=30, show_default=True, help="Timed runs of each model and size."
)
@click.option("--seconds", type=click.FloatRange(min=0), default=5.0, show_default=True, help="Most time for one size.")
@click.option("--picture", type=click.Path(path_type=Path), help="Draw the map of --sweep into this .svg or .png.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.option("--quiet", is_flag=True, help="No progress on stderr.")
def bench(
    model: Path | None,
    against: Path | None,
    sweep: bool,
    batches: tuple[int, ...] | None,
    sequences: tuple[int, ...],
    features: tuple[int, ...],
    stages: int,
    threads: tuple[int, ...],
    provider: str,
    repeats: int,
    seconds: float,
    picture: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Measure MODEL, an ONNX file: time by batch and sequence, memory, size, time to load.

    Times are medians of runs on random inputs; with --against, both models take turns in one run and
    the ratio says how many times as fast MODEL is.
    """
    if sweep == (model is not None):
        raise click.UsageError("name an ONNX file to measure, or --sweep")
    if picture and not sweep:
        raise click.UsageError("--picture draws the map of --sweep; add --sweep")
    if sweep and len(threads) > 1:
        raise click.UsageError("--sweep takes one number of --threads")
    from spm_compress.export.verification import check_provider
    from spm_compress_cli.bench_tables import show_break_even, show_latency
    from spm_compress_cli.progress import message

    check_provider(provider)

    def told(text: str) -> None:
        message(f"measuring {text}", quiet)

    if model is None:
        from spm_compress.export.break_even import sweep as sweep_over

        found = sweep_over(
            features=features,
            batches=batches or (1, 16, 64, 256, 1024),
            stages=stages,
            threads=threads[0],
            provider=provider,
            repeats=repeats,
            seconds=seconds,
            told=told,
        )
        show_break_even(found, picture, as_json)
        return
    from spm_compress.export.latency import measure

    latency = measure(
        [model, against] if against else [model],
        batches=batches or (1, 8, 64),
        sequences=sequences,
        threads=threads,
        provider=provider,
        repeats=repeats,
        seconds=seconds,
        told=told,
    )
    show_latency(latency, as_json)
