"""The report as one page of HTML that needs nothing else: no network, no files beside it."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from spm_compress.checkpoint.artifact import Artifact
from spm_compress.checkpoint.files import write_whole
from spm_compress.errors import SpmError
from spm_compress.report import pictures
from spm_compress.report.attachments import Attachments
from spm_compress.report.break_even import read_break_even
from spm_compress.report.frontier import frontier_view
from spm_compress.report.results import flat
from spm_compress.report.savings import Savings, Size
from spm_compress.units import bytes_text

__all__ = ["write_page"]


@dataclass(frozen=True)
class _Picture:
    """An SVG element, its heading, and in words what it shows."""

    name: str
    title: str
    svg: str
    caption: str


def write_page(artifact: Artifact, savings: Savings, name: str, path: Path, attached: Attachments) -> None:
    """Write the report on an artifact called `name` to `path`; the same report gives the same bytes.

    Raises SpmError where jinja2 or matplotlib is missing or the file cannot be written.
    """
    for library in ("jinja2", "matplotlib"):
        if importlib.util.find_spec(library) is None:
            raise SpmError(f"{path}: a page needs {library}; install it with: pip install 'spm-compress[report]'")
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"bytes": bytes_text, "figure": lambda error: "" if error is None else f"{error:.3f}"}
    template = environment.from_string(
        files("spm_compress.report").joinpath("page.html.j2").read_text(encoding="utf-8")
    )
    text = template.render(
        name=name,
        artifact=artifact,
        savings=savings,
        sentences=_sentences(savings, name),
        totals=_totals(savings),
        frontier=None if attached.frontier is None else frontier_view(attached.frontier),
        pictures=_pictures(artifact, savings, attached),
        benches=attached.benches,
        settings=flat(artifact.settings),
    )
    with write_whole(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # of names that are no Unicode


def _sentences(savings: Savings, name: str) -> list[str]:
    """Say what was done, what is left of the weights, and what to think of it."""
    done = len(savings.layers)
    what = (
        "No weight was replaced"
        if not done
        else f"{done} weight{'s' if done > 1 else ''} of the model changed their form or bits"
    )
    size = savings.model_bytes
    first = (
        f"{what}, {len(savings.kept)} tensors stay as they are; with everything, {name} takes {bytes_text(size.after)} "
        f"where the model took {bytes_text(size.before)}."
    )
    if not done:
        return [first]
    svd = savings.mean_svd_error
    beside = "" if svd is None else f"; a truncated SVD of the same size has {svd:.3f}"
    second = (
        f"The replaced weights keep {savings.fitted_parameters.kept:.1%} of their numbers, take "
        f"{savings.fitted_bits:.2f} bits a weight and have a mean relative error of {savings.mean_error:.3f}{beside}."
    )
    return [first, second, savings.verdict]


def _totals(savings: Savings) -> list[tuple[str, Size, Any]]:
    return [
        ("parameters, replaced weights", savings.fitted_parameters, "{:,}".format),
        ("parameters, whole model", savings.model_parameters, "{:,}".format),
        ("bytes, replaced weights", savings.fitted_bytes, bytes_text),
        ("bytes on disk, whole model", savings.model_bytes, bytes_text),
        ("multiply-adds a row, replaced weights", savings.fitted_multiply_adds, "{:,}".format),
    ]


def _pictures(artifact: Artifact, savings: Savings, attached: Attachments) -> list[_Picture]:
    found = []
    if savings.layers:
        caption = (
            "Every matrix of the model. 0 is what it was, 1 is what all zeros reach. A line joins an SPM with the "
            "truncated SVD of as many bytes: where the dot is below, the SPM is nearer to the weight."
        )
        found.append(_Picture("errors", "Error of every matrix", pictures.errors(savings), caption))
    if artifact.curves:
        dense = {
            layer.names[0]: int(size.bytes.before) for layer, size in zip(artifact.layers, savings.layers, strict=True)
        }
        dense |= {kept.name: kept.bytes for kept in artifact.kept}
        caption = (
            "A line a weight, through the sizes that the plan tried; it bought bytes where they lower the error most."
        )
        found.append(_Picture("curves", "Error against size", pictures.curves(artifact.curves, dense), caption))
    if attached.inspection:
        caption = "A line a weight: what the best matrix of a given rank misses. Flat and high: no low rank will do."
        found.append(_Picture("spectra", "Spectra", pictures.spectra(attached.inspection), caption))
    if attached.training:
        caption = "How near the compressed model's answers are to the original's, on data that it was not trained on."
        found.append(_Picture("training", "Distillation", pictures.training(attached.training), caption))
    if attached.break_even:
        picture = pictures.break_even(read_break_even(attached.break_even))
        caption = "Measured on the machine named below the map: one layer, by width and rows."
        found.append(_Picture("break-even", "Where SPM breaks even", picture, caption))
    return found
