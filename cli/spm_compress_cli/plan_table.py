"""What `fit --dry-run` prints."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from rich.table import Table

from spm_compress.units import bytes_text
from spm_compress_cli.tables import print_json, results_console

if TYPE_CHECKING:
    from spm_compress.compress import Forecast, Selected
    from spm_compress.compress.plan import Choice


def show_plan(selected: Selected, forecast: Forecast, as_json: bool) -> None:
    """Print the size that each weight would get, the totals, and what the fit would cost."""
    plan = forecast.plan
    if as_json:
        print_json(
            {
                "schema": "spm-compress/plan/1",
                "bytes": {"before": plan.dense_bytes, "after": plan.bytes},
                "seconds": forecast.seconds,
                "memory": forecast.bytes,
                "layers": [
                    {
                        "name": choice.curve.name,
                        "stages": choice.point and choice.point.stages,
                        "bytes": {"before": choice.curve.dense_bytes, "after": choice.bytes},
                        "error": choice.point.error if choice.point else 0.0,
                        "reason": choice.reason,
                    }
                    for choice in plan.choices
                ],
                "kept": dict(selected.kept),
            }
        )
        return
    console = results_console()
    table = Table(title=f"plan: {len(plan.choices)} weights, nothing written", title_justify="left")
    table.add_column("weight", overflow="fold")
    for heading in ("stages", "bytes", "kept", "error"):
        table.add_column(heading, justify="right")
    table.add_column("why", overflow="fold")
    for choice in plan.choices:
        table.add_row(choice.curve.name, *_cells(choice), choice.reason)
    console.print(table)
    reasons = sorted(selected.kept.values())
    for reason, same in itertools.groupby(reasons):
        console.print(f"left as they are: {len(list(same))} tensors ({reason})")
    console.print(
        f"{bytes_text(plan.dense_bytes)} > {bytes_text(plan.bytes)} ({plan.bytes / plan.dense_bytes:.1%}); "
        f"about {forecast.seconds:.0f} s to fit here, {bytes_text(forecast.bytes)} of memory beside the model"
    )
    console.print("Errors are those of short descents, unless the fits are known: expect the real ones to be lower.")


def _cells(choice: Choice) -> tuple[str, str, str, str]:
    dense = choice.curve.dense_bytes
    before_after = f"{dense:,} > {choice.bytes:,}"
    if choice.point is None:
        return "dense", before_after, "100.0%", "0.000"
    return str(choice.point.stages), before_after, f"{choice.bytes / dense:.1%}", f"{choice.point.error:.3f}"
