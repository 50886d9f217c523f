"""What an export wrote, how well it agrees, and why each layer runs the way it does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console

from spm_compress.units import bytes_text
from spm_compress_cli.console import results_console
from spm_compress_cli.tables import print_json, show_table

if TYPE_CHECKING:
    from spm_compress.export import Exported, OrtFiles
    from spm_compress.export.choice import Choice


def show_exported(written: Sequence[Exported], ort: Sequence[OrtFiles], as_json: bool, *, is_kept: bool) -> None:
    """Print what was written; is_kept: whether the ONNX files stay, or were only needed for those in ORT format."""
    from spm_compress.export.exported_json import export_json

    if as_json:
        print_json(export_json(written, ort, is_kept=is_kept))
        return
    console = results_console()
    choices = [choice for each in written for choice in each.choices]
    if choices:
        _show_choices(console, choices)
    for each in written:
        errors = ", ".join(f"batch {agreement.batch}: {agreement.error:.1e}" for agreement in each.agreements)
        what = each.path if is_kept else "ONNX model (not kept)"
        live = f", to the torch module {each.live.error:.1e}" if each.live else ""
        console.print(
            f"{what}: {_nodes_text(each)}, {bytes_text(each.bytes)} "
            f"(dense {bytes_text(each.dense_bytes)}); verified, relative error to the torch operator {errors}{live}",
            soft_wrap=True,
        )
        for layer, kinds in each.spliced.elsewhere.items():
            readers = ", ".join(dict.fromkeys(kinds))
            console.print(f"{layer}: is also read by {readers}, which gets the multiplied-out matrix", soft_wrap=True)
        if each.spliced.missing:
            fitted = len(each.spliced.missing) + len(each.spliced.nodes)
            console.print(f"{len(each.spliced.nodes)} of {fitted} fitted weights are in it", soft_wrap=True)
        finite = min(agreement.finite for agreement in each.agreements)
        if finite < 1:
            console.print(
                f"{1 - finite:.1%} of what the original model answers is NaN or infinite; there nothing was compared",
                soft_wrap=True,
            )
        if each.speedups:
            ratios = ", ".join(f"batch {batch}: {ratio:.2f}x" for batch, ratio in each.speedups.items())
            console.print(f"speed of the whole model over the dense one, timed interleaved: {ratios}", soft_wrap=True)
    for made in ort:
        worst = max(agreement.error for agreement in made.agreements)
        agreement = f"verified, relative error to the ONNX model {worst:.1e}"
        console.print(f"{made.path}: {bytes_text(made.bytes)}; {agreement}", soft_wrap=True)
        console.print(
            f"{made.config_path}: {bytes_text(made.config_bytes)}, the operators that a minimal build needs",
            soft_wrap=True,
        )


def _nodes_text(each: Exported) -> str:
    """Say how many nodes there are and how many of them run as what: 6 SPM nodes (4 blocks, 2 dense)."""
    runs = Counter(lowering.split()[0] for lowering in each.spliced.runs.values())
    nodes = runs.total()
    how = ", ".join(f"{count} {name}" for name, count in sorted(runs.items()))
    return f"{nodes} SPM node{'' if nodes == 1 else 's'}" + (f" ({how})" if how else "")


def _show_choices(console: Console, choices: Sequence[Choice]) -> None:
    """One row for layers of which everything but the name is the same."""
    alike: dict[str, list[Choice]] = {}
    for choice in choices:
        alike.setdefault(f"{choice.rows} {choice.microseconds} {choice.reason}", []).append(choice)
    # A form has ways of its own: a dense map runs as whole numbers, stages do not.
    ways = list(dict.fromkeys(name for choice in choices for name in choice.microseconds))
    names = [name.replace(" ", "\n").replace("-", "-\n") for name in ways]
    rows = []
    for group in alike.values():
        first, *others = group
        named = first.layer.removesuffix(".weight") + (f" and {len(others)} like it" if others else "")
        times = ["\n".join(f"{time:,.0f}" for time in first.microseconds.get(way, ())) or "-" for way in ways]
        counts = "\n".join(f"{count:,}" for count in first.rows)
        rows.append((named, counts, *times, f"{first.lowering.name}: {first.reason}"))
    title = "lowering of each layer, microseconds at its rows"
    show_table(console, ("layers", "rows", *names, "chosen, why"), rows, title=title, texts=("chosen, why",))
