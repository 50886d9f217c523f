"""`spm-compress report`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def report(artifact: Path | None, as_json: bool) -> None:
    """Show what a fit saved and what it cost.

    Without ARTIFACT, the one *.spm.safetensors in the working directory is taken.
    """
    from spm_compress.checkpoint import find_artifact, read_artifact
    from spm_compress.report import summarize
    from spm_compress_cli.tables import show_report

    path = artifact or find_artifact(Path())
    show_report(summarize(read_artifact(path), path), path, as_json)
