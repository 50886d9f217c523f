"""What every result says of where it comes from."""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from spm_compress.export.choice import processor

__all__ = ["origin"]


def origin(script: str, arguments: Sequence[str]) -> dict[str, str]:
    """Return the command of a script (its `__file__`), the date and the processor, as results keep them."""
    command = " ".join(["python", f"benchmarks/{Path(script).name}", *arguments])
    return {"command": command, "date": datetime.date.today().isoformat(), "machine": processor()}
