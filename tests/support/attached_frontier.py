"""The JSON of a frontier, as it is attached to a report."""

from __future__ import annotations

from typing import Any

FRONTIER: dict[str, Any] = {
    "schema": "spm-compress/frontier/1",
    "onnxruntime": "1.32.0",
    "settings": {"provider": "CPUExecutionProvider", "threads": 1},
    "agreement": {"measure": "similarities", "samples": 200},
    "shapes": [{"batch": 1, "sequence": 16}, {"batch": 8, "sequence": 128}],
    "standings": [
        {"name": name, "kind": kind, "bytes": size, "load_seconds": 0.25, "peak_bytes": 2 * size, "seconds": [t, 9 * t]}
        | {"agreement": agreement, "score": None, "dominated_by": worse}
        for name, kind, size, t, agreement, worse in (
            ("float32", "original", 90_900_000, 0.019, 1.0, []),
            ("int8 <b>", "baseline", 22_900_000, 0.009, 0.9884, []),
            ("ours, large", "ours", 24_000_000, 0.010, 0.98, ["int8 <b>"]),
            ("ours", "ours", 9_900_000, 0.0084, 0.95, []),
        )
    ],
    "left_out": [{"name": "int4", "why": "no product & no table"}],
}
