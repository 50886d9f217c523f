"""What web pages are opened with: a Chromium, and what npm installed beside the example."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

__all__ = ["EXAMPLE", "MODULES", "find_chromium"]

EXAMPLE = Path(__file__).resolve().parent.parent.parent / "examples" / "browser"
MODULES = EXAMPLE / "node_modules"


def find_chromium() -> str | None:
    """Return the path of a Chromium: the one that CHROMIUM names, or else one that is installed."""
    named = os.environ.get("CHROMIUM")
    names = [named] if named else ["chromium", "chromium-browser", "google-chrome"]
    return next((path for path in map(shutil.which, names) if path), None)
