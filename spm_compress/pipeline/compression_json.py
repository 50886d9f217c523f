"""What a compression came to, as JSON values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spm_compress.pipeline.compression import Compression
from spm_compress.pipeline.frontier import frontier_json
from spm_compress.pipeline.planner import Plan

__all__ = ["compression_json"]


def compression_json(found: Compression, path: Path) -> dict[str, Any]:
    """Return the result; `schema` is its version. Sizes in bytes, times in seconds; null of a dry run's file."""
    return {
        "schema": "spm-compress/compress/1",
        "path": None if found.file is None else str(path),
        "bytes": None if found.file is None else found.file.bytes,
        "float32_bytes": found.float32_bytes,
        "agreement": found.agreement,
        "speedups": None if found.file is None else {str(k): v for k, v in found.file.speedups.items()},
        "missed": list(found.missed),
        "written_instead": None if found.instead is None else found.instead.name,
        "frontier": None if found.frontier is None else frontier_json(found.frontier),
        "plan": _plan(found.plan),
        "weights": [
            {
                "name": name,
                "becomes": None if each is None else each.text,
                "bytes": None if each is None else each.bytes,
                "error": 0.0 if each is None else each.error,
            }
            for name, each in found.plan.chosen.items()
        ],
        "tried": [_plan(plan) for plan in found.tried],
        "kept": dict(found.kept),
    }


def _plan(plan: Plan) -> dict[str, float]:
    return {
        "bytes": plan.bytes,
        "seconds": plan.seconds,
        "predicted_harm": plan.harm,
        "harm": plan.measured,
        "agreement": plan.agreement,
    }
