"""Nested settings as rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["flat"]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `a.b` -> value in words for every leaf of nested settings, in their order."""
    rows: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return rows
