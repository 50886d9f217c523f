"""What a plan and an expansion came to, as JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spm_compress.compress.expansion import Expanded
from spm_compress.compress.model import Selected
from spm_compress.compress.planned import Forecast

__all__ = ["expansion_json", "plan_json"]


def plan_json(selected: Selected, forecast: Forecast) -> dict[str, Any]:
    """Return a plan: sizes in bytes, seconds to fit here, bytes of memory; `schema` is its version."""
    plan = forecast.plan
    return {
        "schema": "spm-compress/plan/1",
        "bytes": {"before": plan.dense_bytes, "after": plan.bytes},
        "seconds": forecast.seconds,
        "memory": forecast.bytes,
        "layers": [
            {
                "name": choice.curve.name,
                "stages": choice.point and choice.point.stages,
                "bytes": {"before": choice.curve.dense_bytes, "after": choice.bytes},
                "error": choice.point.error if choice.point else 0.0,
                "reason": choice.reason,
            }
            for choice in plan.choices
        ],
        "kept": dict(selected.kept),
    }


def expansion_json(found: Expanded, path: Path) -> dict[str, Any]:
    """Return what was expanded into a file; `schema` is its version."""
    return {
        "schema": "spm-compress/expand/1",
        "path": str(path),
        "bytes": path.stat().st_size,
        "tensors": len(found.tensors),
        "biases_left_out": list(found.lost),
    }
