"""What an inspection, a plan and an expansion came to, as JSON values, and nested settings as rows."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spm_compress.compress.expansion import Expanded
from spm_compress.compress.inspection import Inspection, LayerInspection
from spm_compress.compress.model import Selected
from spm_compress.compress.planned import Forecast

__all__ = ["INSPECTION_SCHEMA", "expansion_json", "flat", "inspection_json", "plan_json"]


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


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Return `a.b` -> value in words for every leaf of nested settings, in their order."""
    rows: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            rows |= flat(value, f"{prefix}{key}.")
        else:
            rows[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return rows


INSPECTION_SCHEMA = "spm-compress/inspect/1"


def inspection_json(inspection: Inspection) -> dict[str, Any]:
    """Return the inspection as JSON values, with `schema` as its version.

    Fields are those of the dataclasses in `compress.inspection`; a decay that is infinite becomes null.
    """
    return {
        "schema": INSPECTION_SCHEMA,
        "layers": [_layer(layer) for layer in inspection.layers],
        "probes": [asdict(probe) for probe in inspection.probes],
        "kept": [asdict(left) for left in inspection.kept],
    }


def _layer(layer: LayerInspection) -> dict[str, Any]:
    return {**asdict(layer), "decay": layer.decay if math.isfinite(layer.decay) else None}
