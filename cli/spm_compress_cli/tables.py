"""Results on stdout: tables for people, JSON on request."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from rich import box
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from spm_compress.units import bytes_text
from spm_compress_cli.console import results_console

if TYPE_CHECKING:
    from spm_compress.report import Savings, Size

_UNLIMITED = 10_000


def print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def compact_table() -> Table:
    """Return a table that spends few columns on lines."""
    return Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False)


def show_table(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    title: str = "",
    spare: Sequence[str] = (),
    texts: Sequence[str] = (),
) -> None:
    """Print a table whose first column, and those of `texts`, are words, the others figures.

    spare: headings of columns that are left out, the last first, as far as the table would else be wider than the
    terminal; what is then still too wide is folded.
    """
    shown = list(range(len(headings)))
    spared = [headings.index(heading) for heading in spare]
    while True:
        table = compact_table()
        for i in shown:
            is_text = i == 0 or headings[i] in texts
            justify: JustifyMethod = "left" if is_text else "right"
            table.add_column(Text(headings[i]), justify=justify, overflow="fold", no_wrap=not is_text)
        for row in rows:
            # Figures are our own, and may stand below each other; words may be a user's.
            table.add_row(*(row[i] if i == 0 or headings[i] in texts else Text(row[i]) for i in shown))
        unlimited = console.options.update_width(_UNLIMITED)
        if not spared or Measurement.get(console, unlimited, table).maximum <= console.width:
            break
        shown.remove(spared.pop())
    if title:
        console.print(title)
    console.print(table)
    if len(shown) < len(headings):
        left = ", ".join(headings[i].replace("\n", " ") for i in range(len(headings)) if i not in shown)
        console.print(f"left out for want of room: {left}; a wider terminal, a pipe or --json has them")


def show_report(savings: Savings, path: Path, as_json: bool) -> None:
    """Print every layer, the totals, the reasons of the tensors left dense, and the verdict."""
    if not as_json:
        console = results_console()
        _show_layers(console, savings)
        show_kept(console, savings.kept)
    show_totals(savings, path, as_json)


def show_totals(savings: Savings, path: Path, as_json: bool, scores: Mapping[str, float] | None = None) -> None:
    """Print the totals, the verdict, and the user's own scores of the models if there are some."""
    from spm_compress.report import to_json

    if as_json:
        print_json({"artifact": str(path), **to_json(savings), "scores": scores or None})
        return
    console = results_console()
    rows = [
        _size_row("parameters, fitted weights", savings.fitted_parameters, "{:,}".format),
        _size_row("parameters, whole model", savings.model_parameters, "{:,}".format),
        _size_row("bytes, fitted weights", savings.fitted_bytes, bytes_text),
        _size_row("bytes, whole model on disk", savings.model_bytes, bytes_text),
        _size_row("multiply-adds a row, fitted", savings.fitted_multiply_adds, "{:,}".format),
    ]
    title = f"{path}: {len(savings.layers)} weights fitted, {savings.fitted_bits:.2f} bits a weight"
    show_table(console, ("", "before", "after", "kept", "removed"), rows, title=title)
    svd = savings.mean_svd_error
    console.print(
        f"mean relative weight error {savings.mean_error:.3f}"
        + ("" if svd is None else f"; truncated SVD of the same size {svd:.3f}")
    )
    outputs = savings.mean_svd_output_error
    if savings.mean_output_error is not None:
        console.print(
            f"mean relative error of the outputs {savings.mean_output_error:.3f}"
            + ("" if outputs is None else f"; truncated SVD of the same size, weighted in the same way, {outputs:.3f}")
        )
    if savings.recovery is not None:
        by = savings.recovery.imported_by
        console.print(
            f"trained for {savings.recovery.steps} steps on {savings.recovery.data}"
            + ("" if by is None else f", imported by {by}")
            + f": agreement with the original on "
            f"held-out data {savings.recovery.before:.3f} before, {savings.recovery.after:.3f} after"
        )
    if scores:
        console.print(scores_text(scores))
    console.print(savings.verdict)


def scores_text(scores: Mapping[str, float]) -> str:
    return "score: " + ", ".join(f"{which} {score:.4g}" for which, score in scores.items())


def shape_text(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def error_text(error: float | None) -> str:
    return "-" if error is None else f"{error:.3f}"


def _show_layers(console: Console, savings: Savings) -> None:
    headings = ["weight", "shape", "form", "kept", "bits", "error", "SVD error"]
    is_weighted = savings.mean_output_error is not None
    headings += ["output error", "SVD output"] if is_weighted else []
    spare = ["bytes", "parameters", "multiply-adds"]
    rows = []
    for layer in savings.layers:
        outputs = [error_text(layer.output_error), error_text(layer.svd_output_error)] if is_weighted else []
        rows.append(
            [
                layer.name,
                shape_text(layer.shape),
                layer.form_text,
                f"{layer.bytes.kept:.1%}",
                f"{layer.bits:.2f}",
                error_text(layer.error),
                error_text(layer.svd_error),
                *outputs,
                *(f"{size.before:,} > {size.after:,}" for size in (layer.bytes, layer.parameters, layer.multiply_adds)),
            ]
        )
    show_table(console, [*headings, *spare], rows, title="fitted weights", spare=spare)


class Kept(Protocol):
    """A tensor that stays as it is."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def reason(self) -> str: ...


def show_kept(console: Console, kept: Sequence[Kept]) -> None:
    """Print what stays dense, and why: a row a reason on a terminal, every tensor by name in a pipe."""
    if not kept:
        return
    title = f"{len(kept)} tensors left as they are"
    if not console.is_terminal:
        rows = [(each.name, shape_text(each.shape), each.reason) for each in kept]
        show_table(console, ("tensor", "shape", "reason"), rows, title=title, texts=("reason",))
        return
    rows = []
    for reason, alike in itertools.groupby(sorted(kept, key=lambda each: each.reason), key=lambda each: each.reason):
        first, *others = alike
        rows.append((reason, str(1 + len(others)), f"{first.name}{', ...' if others else ''}"))
    show_table(console, ("reason", "tensors", "such as"), rows, title=title, texts=("such as",))


def _size_row(title: str, size: Size, form: Any) -> tuple[str, ...]:
    return title, form(size.before), form(size.after), f"{size.kept:.1%}", f"{size.removed:.1%}"
