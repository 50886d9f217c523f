"""What `inspect` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from spm_compress_cli.tables import print_json, results_console

if TYPE_CHECKING:
    from spm_compress.compress import Inspection


def show_inspection(inspection: Inspection, path: Path, as_json: bool) -> None:
    """Print the spectra, the errors to expect, the verdicts, the probes and what stays dense."""
    from spm_compress.report import inspection_json

    if as_json:
        print_json({"model": str(path), **inspection_json(inspection)})
        return
    console = results_console()
    console.print(_spectra(inspection, path))
    console.print(_errors(inspection))
    if inspection.probes:
        console.print(_probes(inspection))
    if inspection.kept:
        console.print(_kept(inspection))


def _spectra(inspection: Inspection, path: Path) -> Table:
    table = Table(
        title=f"{path}: {len(inspection.layers)} dense weights",
        title_justify="left",
        caption="effective rank: exp of the entropy of the squared singular values; energy: what the first 1 % and "
        "10 % of them hold; decay: the first singular value over the median one",
        caption_justify="left",
    )
    table.add_column("weight", overflow="fold")
    for heading in ("shape", "rank", "effective", "decay", "energy 1%", "10%"):
        table.add_column(heading, justify="right")
    table.add_column("in words", overflow="fold")
    for layer in inspection.layers:
        table.add_row(
            layer.name,
            f"{layer.shape[0]}x{layer.shape[1]}",
            str(layer.rank),
            f"{layer.effective_rank:.1f}",
            f"{layer.decay:.1f}",
            f"{layer.energy_1:.0%}",
            f"{layer.energy_10:.0%}",
            layer.verdict,
        )
    return table


def _errors(inspection: Inspection) -> Table:
    table = Table(
        title="relative errors; 1.000 is what all zeros reach",
        title_justify="left",
        caption="SVD: truncated, at that share of the bytes. bound: fit's chain of that size cannot go below. "
        "butterfly: log2 n stages at the larger width, with its size, the SVD of that size, its closed form before "
        "descent, and the bound that holds for every such butterfly.",
        caption_justify="left",
    )
    table.add_column("weight", overflow="fold")
    shares = [f"{size.share:.0%}" for size in inspection.layers[0].sizes]
    headings = [*(f"SVD {share}" for share in shares), *(f"bound {share}" for share in shares)]
    for heading in [*headings, "butterfly", "SVD", "closed form", "bound"]:
        table.add_column(heading, justify="right")
    for layer in inspection.layers:
        form = layer.closed_form
        table.add_row(
            layer.name,
            *(f"{size.svd_error:.3f}" for size in layer.sizes),
            *("none" if size.bound == 0 else _error(size.bound) for size in layer.sizes),
            f"{form.numbers / (layer.shape[0] * layer.shape[1]):.1%}" if form else "-",
            _error(layer.svd_at_closed_form),
            _error(form.error if form else None),
            _error(form.bound if form else None),
        )
    return table


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"


def _probes(inspection: Inspection) -> Table:
    table = Table(
        title="probes: a short descent on one weight of every shape; fit takes more steps and goes lower",
        title_justify="left",
    )
    table.add_column("weight", overflow="fold")
    for heading in ("shape", "of", "share", "stages", "bytes", "steps", "error so far", "SVD of equal size"):
        table.add_column(heading, justify="right")
    table.add_column("why not", overflow="fold")
    for probe in inspection.probes:
        table.add_row(
            probe.name,
            f"{probe.shape[0]}x{probe.shape[1]}",
            str(probe.layers),
            f"{probe.share:.0%}",
            str(probe.stages),
            f"{probe.stored_bytes:,}",
            str(probe.steps),
            _error(probe.error),
            f"{probe.svd_error:.3f}",
            probe.reason,
        )
    return table


def _kept(inspection: Inspection) -> Table:
    table = Table(title="tensors that stay as they are", title_justify="left")
    table.add_column("tensor", overflow="fold")
    table.add_column("shape", justify="right")
    table.add_column("reason", overflow="fold")
    for left in inspection.kept:
        table.add_row(left.name, "x".join(map(str, left.shape)), left.reason)
    return table
