"""`spm-compress report`."""

from __future__ import annotations

from pathlib import Path

import click

from spm_compress_cli.interruption import if_interrupted, written_since
from spm_compress_cli.output import OutputFile
from spm_compress_cli.verbosity import Verbosity, verbosity_options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option("--html", type=OutputFile(), metavar="FILE", help="Also write it as one page of HTML.")
@click.option(
    "--with",
    "attached",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FILE",
    help="For the page: what inspect --json, bench --json or distill --log wrote, or a frontier; repeatable.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@verbosity_options
def report(
    artifact: Path | None, html: Path | None, attached: tuple[Path, ...], as_json: bool, verbosity: Verbosity
) -> None:
    """Show what a fit saved and what it cost.

    Without ARTIFACT, the one *.spm.safetensors in the working directory is taken.
    """
    from spm_compress.checkpoint import find_artifact, keep_apart, read_artifact, source_files
    from spm_compress.report import read_attachments, summarize, write_page
    from spm_compress_cli.progress import message
    from spm_compress_cli.tables import show_report

    if attached and html is None:
        raise click.UsageError("--with adds to the page; give --html report.html too")
    path = artifact or find_artifact(Path())
    found = read_artifact(path)
    savings = summarize(found, path)
    if html is not None:
        keep_apart("--html", html, [path, *source_files(found, path), *attached])
        if_interrupted(written_since([html]))
        write_page(found, savings, path.name, html, read_attachments(attached))
        message(f"{html}: written", verbosity)
    show_report(savings, path, as_json)
