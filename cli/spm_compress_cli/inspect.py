"""`spm-compress inspect`."""

from __future__ import annotations

from pathlib import Path

import click

from spm_compress_cli.factory import factory_option
from spm_compress_cli.opening import key_option, open_model
from spm_compress_cli.selection import selection_options
from spm_compress_cli.verbosity import Verbosity, verbosity_options


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@factory_option
@key_option
@selection_options
@click.option(
    "--probe-steps",
    type=click.IntRange(min=0),
    default=60,
    show_default=True,
    help="Gradient steps of a probe; 0: none.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the inspection as JSON.")
@verbosity_options
def inspect(
    *,
    model: Path | None,
    factory: str | None,
    key: str | None,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    min_features: int,
    probe_steps: int,
    as_json: bool,
    verbosity: Verbosity,
) -> None:
    """Show what is dense in MODEL and what it would lose, without fitting it.

    For every weight that `fit` would take: how fast its singular values decay, the error of a truncated SVD at
    3 %, 6 % and 12 % of its bytes, the closed form of a butterfly and the bound below which no such chain gets.
    For every shape: a short descent of the chains that `fit` would take at these sizes, where it is not too short
    for them. Errors are relative Frobenius errors; 1.00 is what all zeros reach.
    """
    from spm_compress.compress import inspect_model
    from spm_compress_cli.inspection_table import show_inspection
    from spm_compress_cli.progress import message

    source = open_model(model, factory, key, verbosity)
    inspection = inspect_model(
        source,
        include=include,
        exclude=exclude,
        min_features=min_features,
        probe_steps=probe_steps,
        progress=lambda done, total, what: message(f"[{done}/{total}] {what}", verbosity),
    )
    show_inspection(inspection, source.path, as_json)
