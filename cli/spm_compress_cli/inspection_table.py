"""What `inspect` prints."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from spm_compress_cli.console import results_console
from spm_compress_cli.tables import error_text, print_json, shape_text, show_kept, show_table

if TYPE_CHECKING:
    from spm_compress.compress import Inspection
    from spm_compress.compress.inspection import LayerInspection


def show_inspection(inspection: Inspection, path: Path, as_json: bool) -> None:
    """Print the spectra, the errors to expect, the verdicts, the probes and what stays dense."""
    from spm_compress.report import inspection_json

    if as_json:
        print_json({"model": str(path), **inspection_json(inspection)})
        return
    console = results_console()
    _show_spectra(console, inspection, path)
    _show_errors(console, inspection)
    _show_probes(console, inspection)
    show_kept(console, inspection.kept)
    console.print()
    console.print("in words")
    for layer in inspection.layers:
        console.print(f"{layer.name}: {layer.verdict}")


def _show_spectra(console: Console, inspection: Inspection, path: Path) -> None:
    rows = [
        (
            layer.name,
            shape_text(layer.shape),
            str(layer.rank),
            f"{layer.effective_rank:.1f}",
            f"{layer.decay:.1f}",
            f"{layer.energy_1:.0%}",
            f"{layer.energy_10:.0%}",
        )
        for layer in inspection.layers
    ]
    title = f"{path}: {len(inspection.layers)} dense weights"
    headings = ("weight", "shape", "rank", "effective", "decay", "in 1%", "10%")
    show_table(console, headings, rows, title=title, spare=("rank", "decay"))
    console.print(
        "effective: exp of the entropy of the squared singular values; in 1%, 10%: the energy that the first 1 % and "
        "10 % of them hold; decay: the first singular value over the median one"
    )


def _show_errors(console: Console, inspection: Inspection) -> None:
    shares = [f"{size.share:.0%}" for size in inspection.layers[0].sizes]
    svd, bound = ([f"{what}\n{share}" for share in shares] for what in ("SVD", "bound"))
    form = ["butterfly\nsize", "its\nSVD", "closed\nform", "its\nbound"]
    rows = [
        (
            layer.name,
            *(error_text(size.svd_error) for size in layer.sizes),
            *("none" if size.bound == 0 else error_text(size.bound) for size in layer.sizes),
            *_closed_form(layer),
        )
        for layer in inspection.layers
    ]
    console.print()
    title = "relative errors; 1.000 is what all zeros reach"
    show_table(console, ("weight", *svd, *bound, *form), rows, title=title, spare=(bound[0], *form, *bound[1:]))
    console.print(
        "SVD: truncated, at that share of the bytes; bound: fit's chain of that size cannot go below; butterfly: "
        "log2 n stages at the larger width, its size, the SVD of that size, its closed form before descent, and the "
        "bound that holds for every such butterfly"
    )


def _closed_form(layer: LayerInspection) -> tuple[str, str, str, str]:
    form = layer.closed_form
    if form is None:
        return ("-",) * 4
    size = f"{form.numbers / (layer.shape[0] * layer.shape[1]):.1%}"
    return size, error_text(layer.svd_at_closed_form), error_text(form.error), error_text(form.bound)


def _show_probes(console: Console, inspection: Inspection) -> None:
    if not inspection.probes:
        return
    rows = [
        (
            probe.name,
            shape_text(probe.shape),
            str(probe.layers),
            f"{probe.share:.0%}",
            str(probe.stages),
            error_text(probe.error),
            error_text(probe.svd_error),
            f"{8 * probe.stored_bytes / (probe.shape[0] * probe.shape[1]):.2f}",
            f"{probe.stored_bytes:,}",
            str(probe.steps),
            probe.reason or "",
        )
        for probe in inspection.probes
    ]
    headings = (
        "weight",
        "shape",
        "of",
        "share",
        "stages",
        "error\nso far",
        "equal\nSVD",
        "bits",
        "bytes",
        "steps",
        "why not",
    )
    console.print()
    title = "probes, one weight of every shape: short descents; fit goes lower"
    spare = ("shape", "of", "why not", "bits", "bytes", "steps")
    show_table(console, headings, rows, title=title, spare=spare, texts=("why not",))
