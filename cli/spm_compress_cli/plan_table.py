"""What `fit --dry-run` prints."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from spm_compress.units import bytes_text
from spm_compress_cli.console import results_console
from spm_compress_cli.tables import error_text, print_json, show_table

if TYPE_CHECKING:
    from spm_compress.compress import Forecast, Selected
    from spm_compress.compress.plan import Choice


def show_plan(selected: Selected, forecast: Forecast, as_json: bool) -> None:
    """Print the size that each weight would get, the totals, and what the fit would cost."""
    from spm_compress.report import plan_json

    plan = forecast.plan
    if as_json:
        print_json(plan_json(selected, forecast))
        return
    console = results_console()
    rows = [(choice.curve.name, *_cells(choice), choice.reason) for choice in plan.choices]
    title = f"plan: {len(plan.choices)} weights, nothing written"
    headings = ("weight", "stages", "kept", "bits", "error", "bytes", "why")
    show_table(console, headings, rows, title=title, spare=("bytes",), texts=("why",))
    reasons = sorted(selected.kept.values())
    for reason, same in itertools.groupby(reasons):
        console.print(f"left as they are: {len(list(same))} tensors ({reason})")
    console.print(
        f"{bytes_text(plan.dense_bytes)} > {bytes_text(plan.bytes)} ({plan.bytes / plan.dense_bytes:.1%}); "
        f"about {forecast.seconds:.0f} s to fit here, {bytes_text(forecast.bytes)} of memory beside the model"
    )
    console.print("Errors are those of short descents, unless the fits are known: expect the real ones to be lower.")


def _cells(choice: Choice) -> tuple[str, ...]:
    dense = choice.curve.dense_bytes
    before_after = f"{dense:,} > {choice.bytes:,}"
    bits = f"{8 * choice.bytes / choice.curve.values:.2f}"
    if choice.point is None:
        return "dense", "100.0%", bits, "0.000", before_after
    kept = f"{choice.bytes / dense:.1%}"
    return str(choice.point.stages), kept, bits, error_text(choice.point.error), before_after
