"""What `compress` prints: the plan by what weights become, what it predicted, and what the file came to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spm_compress.units import bytes_text
from spm_compress_cli.console import results_console
from spm_compress_cli.frontier_table import show_frontier
from spm_compress_cli.tables import print_json, show_table

if TYPE_CHECKING:
    from spm_compress.pipeline import Compression


def show_compression(found: Compression, path: Path, as_json: bool) -> None:
    """Print a result; a row for all weights that become the same, all of them by name where there are few."""
    from spm_compress.pipeline.compression_json import compression_json

    if as_json:
        print_json(compression_json(found, path))
        return
    console = results_console()
    kinds: dict[str, list[str]] = {}
    sizes: dict[str, int] = {}
    for name, each in found.plan.chosen.items():
        text = "left alone" if each is None else each.text
        kinds.setdefault(text, []).append(name)
        sizes[text] = sizes.get(text, 0) + (0 if each is None else each.bytes)
    rows = [
        (text, str(len(names)), bytes_text(sizes[text]) if sizes[text] else "-", _named(names))
        for text, names in sorted(kinds.items(), key=lambda item: -len(item[1]))
    ]
    title = f"plan: {len(found.plan.chosen)} weights"
    show_table(console, ("becomes", "weights", "bytes", "such as"), rows, title=title, texts=("such as",))
    plan = found.plan
    console.print(
        f"predicted: {bytes_text(plan.bytes)}, agreement {plan.agreement:.3f} with float32 activations; sum of the "
        f"weights' harms {plan.harm:.4f}, of all together {plan.measured:.4f}",
        soft_wrap=True,
    )
    if found.file is None or found.agreement is None or found.frontier is None:
        console.print("nothing was written (--dry-run)")
        return
    ratio = found.file.bytes / found.float32_bytes
    speeds = ", ".join(f"batch {batch}: {ratio:.2f}x" for batch, ratio in found.file.speedups.items())
    console.print(
        f"{path}: {bytes_text(found.float32_bytes)} > {bytes_text(found.file.bytes)} ({ratio:.1%}), agreement with the "
        f"original on held-out data {found.agreement:.3f}, verified against the torch operator"
        + (f"; speed over float32 {speeds}" if speeds else ""),
        soft_wrap=True,
    )
    show_frontier(found.frontier, as_json=False)
    if found.instead is not None:
        console.print(
            f"{path}: holds {found.instead.name}, which is no larger, no slower and no further from the original than "
            "the plan",
            soft_wrap=True,
        )


def _named(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]}, ..."
