"""Tables of the pages are those of benchmarks/results."""

from __future__ import annotations

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_table_is_what_the_results_say() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "tables.py"))
    found = script["pages"]()
    assert found
    for page in found:
        text = page.read_text(encoding="utf-8")
        assert script["with_tables"](text) == text, f"{page}: run python benchmarks/tables.py"
