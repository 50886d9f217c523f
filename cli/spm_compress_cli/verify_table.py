"""What `verify` compared, in tables of at most 80 columns."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING

from spm_compress_cli.console import results_console
from spm_compress_cli.tables import compact_table, print_json, scores_text

if TYPE_CHECKING:
    from spm_compress.export.side_by_side import SideBySide


def show_differences(found: SideBySide, as_json: bool, scores: Mapping[str, float]) -> None:
    """Print a table of differences for each provider, and the user's own scores if there are some."""
    from spm_compress.export.side_by_side import side_by_side_json

    if as_json:
        print_json({**side_by_side_json(found), "scores": dict(scores) or None})
        return
    console = results_console()
    console.print(f"model    {found.model}", soft_wrap=True)
    console.print(f"against  {found.against}", soft_wrap=True)
    console.print("error: ||model - against|| / ||against||; cosine: along the last axis, averaged")
    for provider, differences in itertools.groupby(found.differences, lambda each: each.provider):
        console.print()
        console.print(provider)
        table = compact_table()
        table.add_column("output", overflow="fold")
        for heading in ("batch", "sequence", "error", "largest", "cosine"):
            table.add_column(heading, justify="right")
        for each in differences:
            sequence = "-" if each.sequence is None else str(each.sequence)
            table.add_row(
                each.output, str(each.batch), sequence, f"{each.error:.2g}", f"{each.largest:.2g}", f"{each.cosine:.4f}"
            )
        console.print(table)
    if scores:
        console.print(scores_text(scores))
