"""Tables of the documentation, made of benchmarks/results/*.json.

    python benchmarks/tables.py            # writes them into the pages; `make test` finds a page that differs

A table stands between `<!-- table NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
_BLOCK = re.compile(r"(<!-- table ([\w-]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def result(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def bits_minilm(key: str) -> str:
    found = result("bits_minilm")[key]
    at = [f"{batch}x{tokens}" if batch > 1 else f"{tokens}" for batch, tokens in found["shapes"]]
    first = found["rows"][0]["milliseconds"]
    rows = [
        [
            row["name"],
            f"{row['megabytes']:.1f}",
            f"{row['spearman']:.3f}",
            f"{row['top1']:.3f}",
            f"{row['lee']:.3f}",
            " / ".join(f"{dense / own:.2f}x" for dense, own in zip(first, row["milliseconds"], strict=True)),
            f"{row['load_seconds']:.2f}",
        ]
        for row in found["rows"]
    ]
    speed = f"speed at {', '.join(at)} tokens"
    made = table(["file", "MB", "Spearman", "top-1", "Lee", speed, "load, s"], rows)
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return f"{made}\n`{found['command']}`, {found['date']}, {found['machine']}, one thread; {versions}.\n"


def bits_quality() -> str:
    found = result("bits_quality")
    forms = ["spm", "svd", "monarch"]
    rows = [
        [size, *(f"{errors[form]:.3f}" if form in errors else "-" for form in forms), f"{2 ** -float(size):.3f}"]
        for size, errors in found["median"].items()
    ]
    made = table(["bits a weight", "SPM in angles", "SVD", "Monarch", "Gaussian bound"], rows)
    told = f"`{found['command']}`, {found['date']}, {found['machine']}; medians of {len(found['rows'])} matrices."
    return f"{made}\n{told}\n"


TABLES: Mapping[str, Callable[[], str]] = {
    "bits-minilm": lambda: bits_minilm("without data"),
    "bits-minilm-calibrated": lambda: bits_minilm("calibrated on 400 sentences"),
    "bits-quality": bits_quality,
}


def with_tables(page: str) -> str:
    """Return a page with its tables as the results have them."""
    return _BLOCK.sub(lambda found: f"{found[1]}{TABLES[found[2]]()}{found[3]}", page)


def pages() -> list[Path]:
    return [path for path in sorted((ROOT / "docs").rglob("*.md")) if _BLOCK.search(path.read_text(encoding="utf-8"))]


if __name__ == "__main__":
    for path in pages():
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
