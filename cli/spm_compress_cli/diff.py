"""`spm-compress diff`."""

from __future__ import annotations

from pathlib import Path

import click

from spm_compress_cli.verbosity import Verbosity, verbosity_options


@click.command()
@click.argument("a", type=click.Path(path_type=Path))
@click.argument("b", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the difference as JSON.")
@verbosity_options
def diff(a: Path, b: Path, as_json: bool, verbosity: Verbosity) -> None:
    """Compare two artifacts, or two reports of --json: sizes, errors, settings, and the weights that differ."""
    from spm_compress.report.difference import compare
    from spm_compress_cli.difference_table import show_difference

    show_difference(compare(a, b), as_json)
