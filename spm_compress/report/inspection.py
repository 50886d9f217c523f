"""An inspection as JSON values."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

from spm_compress.compress.inspection import Inspection, LayerInspection

__all__ = ["INSPECTION_SCHEMA", "inspection_json"]

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
