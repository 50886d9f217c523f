"""`spm-compress compress`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spm_compress_cli.cache_folder import CACHE
from spm_compress_cli.factory import factory_option
from spm_compress_cli.interruption import if_interrupted, written_since
from spm_compress_cli.opening import key_option, open_model
from spm_compress_cli.output import OutputFile
from spm_compress_cli.selection import selection_options
from spm_compress_cli.sizes import Sizes
from spm_compress_cli.verbosity import Verbosity, verbosity_options

if TYPE_CHECKING:
    from spm_compress.distill import TrainingReport
    from spm_compress.pipeline import PlanSettings, Targets

_FOUND_OUT = f"; what it found out is kept in {CACHE}, and the same command goes on from there"


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@factory_option
@key_option
@click.option("-o", "--output", type=OutputFile(), required=True, help="ONNX file to write, its artifact beside it.")
@click.option("--budget", metavar="SIZE", help="Most bytes of the file: 9MB, or a share of the float32 file: 10%.")
@click.option("--agreement", type=float, metavar="A", help="Least agreement with the original, on held-out data.")
@click.option("--latency", metavar="TIME", help="Longest run, 5ms, at --batch, --sequence and --threads.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DATA",
    help="Unlabelled inputs: a .txt, a folder of datasets, or .npz or .safetensors of model inputs.",
)
@click.option(
    "--recover", default="0", show_default=True, metavar="TIME", help="Train for so long, 30min, through the rounding."
)
@click.option("--forms", metavar="KIND,...", help="Choose from these forms only: dense, spm, low-rank, monarch.")
@click.option("--bits", metavar="B,...", help="Choose from these bits only: 8 to 2, 1.6, 1, with /BLOCK or without.")
@selection_options
@click.option("--batch", "batches", type=Sizes(), default="1", show_default=True, help="Batch sizes to be fast at.")
@click.option(
    "--sequence", type=click.IntRange(min=1), default=128, show_default=True, help="Sequence length to be fast at."
)
@click.option(
    "--threads", type=click.IntRange(min=0), default=0, show_default=True, help="Threads to be fast with, 0: all."
)
@click.option(
    "--provider", default="CPUExecutionProvider", show_default=True, help="ONNX Runtime's provider to be fast on."
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of fits and of the training.")
@click.option("--dry-run", is_flag=True, help="Print the plan and what it predicts; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@verbosity_options
def compress(
    *,
    model: Path | None,
    factory: str | None,
    key: str | None,
    output: Path,
    budget: str | None,
    agreement: float | None,
    latency: str | None,
    calibration: Path,
    recover: str,
    batches: tuple[int, ...],
    sequence: int,
    threads: int,
    provider: str,
    dry_run: bool,
    as_json: bool,
    verbosity: Verbosity,
    **options: Any,
) -> None:
    """Make MODEL as good an ONNX file as fits: forms, bits and tables planned together, checked end to end.

    \b
    spm-compress compress MODEL -o out.onnx --budget 9MB --calibration texts.txt

    Every weight gets the form and bits that harm the model's answers least for their bytes. Interrupted, the same
    command goes on where it was; another target takes what was found out before. Exit code 1 where a target is missed:
    the best file found is written all the same.
    """
    from spm_compress.checkpoint import files_of, keep_apart
    from spm_compress.errors import VerificationError
    from spm_compress.export import ExportSettings
    from spm_compress.export.verification import check_provider
    from spm_compress.pipeline import compress as compress_source
    from spm_compress.pipeline import parse_seconds
    from spm_compress_cli.compression_table import show_compression
    from spm_compress_cli.progress import follow, message
    from spm_compress_cli.training_progress import follow_training

    targets = _targets(budget, agreement, latency)
    settings = _settings(**options)
    seconds = parse_seconds(recover, "recover")
    check_provider(provider)
    source = open_model(model, factory, key, verbosity)
    keep_apart("--output", output, [*files_of(source), calibration])
    written, found_out = written_since([output]), written_since([CACHE])
    if_interrupted(lambda: written() or (found_out() and _FOUND_OUT))
    with ExitStack() as training, ExitStack() as fits:  # one set of bars at a time

        @functools.cache
        def trained() -> Callable[[TrainingReport], None]:
            fits.close()
            return training.enter_context(follow_training(verbosity, None))

        progress = fits.enter_context(follow(verbosity))
        found = compress_source(
            source,
            output,
            targets,
            calibration,
            settings=settings,
            export=ExportSettings(batches=batches, sequence=sequence, threads=threads, provider=provider),
            recover_seconds=seconds,
            cache=CACHE,
            dry_run=dry_run,
            progress=progress,
            watch=lambda report: trained()(report),
            say=lambda line: message(line, verbosity),
        )
    show_compression(found, output, as_json)
    if found.missed:
        raise VerificationError(f"{output}: {'; '.join(found.missed)}; the best file found was written")


def _targets(budget: str | None, agreement: float | None, latency: str | None) -> Targets:
    from spm_compress.pipeline import Targets, parse_bytes, parse_seconds

    if budget is None and agreement is None and latency is None:
        raise click.UsageError("say what to reach: --budget SIZE, --agreement A or --latency TIME")
    return Targets(
        None if budget is None else parse_bytes(budget),
        None if latency is None else parse_seconds(latency, "latency"),
        agreement,
    )


def _settings(
    *,
    forms: str | None,
    bits: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    min_features: int,
    seed: int,
) -> PlanSettings:
    from spm_compress.compress import parse_forms
    from spm_compress.pipeline import PlanSettings

    return PlanSettings(
        () if forms is None else parse_forms(forms),
        () if bits is None else tuple(text.strip() for text in bits.split(",")),
        include,
        exclude,
        min_features,
        seed=seed,
    )
