"""What an export wrote, as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from spm_compress.export.files import Exported
from spm_compress.export.ort_format import OrtFiles

__all__ = ["export_json"]


def export_json(written: Sequence[Exported], ort: Sequence[OrtFiles], *, is_kept: bool = True) -> dict[str, Any]:
    """Return what was written and how well it agrees; `schema` is its version.

    is_kept: whether the ONNX files stay, or were only needed for those in ORT format.
    """
    files = [{**_file_json(each), "path": str(each.path) if is_kept else None} for each in written]
    return {"schema": "spm-compress/export/3", "files": files, "ort": [_ort_json(each) for each in ort]}


def _ort_json(ort: OrtFiles) -> dict[str, Any]:
    return {
        "path": str(ort.path),
        "bytes": ort.bytes,
        "config_path": str(ort.config_path),
        "config_bytes": ort.config_bytes,
        "agreements": [{"batch": agreement.batch, "error": agreement.error} for agreement in ort.agreements],
    }


def _file_json(each: Exported) -> dict[str, Any]:
    return {
        "bytes": each.bytes,
        "dense_bytes": each.dense_bytes,
        "nodes": each.spliced.nodes,
        "runs": each.spliced.runs,
        "missing": each.spliced.missing,
        "elsewhere": each.spliced.elsewhere,
        "live_error": None if each.live is None else each.live.error,
        "agreements": [
            {"batch": agreement.batch, "error": agreement.error, "finite": agreement.finite}
            for agreement in each.agreements
        ],
        "choices": [
            {
                "layer": choice.layer,
                "lowering": choice.lowering.name,
                "rows": choice.rows,
                "microseconds": choice.microseconds,
                "reason": choice.reason,
            }
            for choice in each.choices
        ],
        "speedups": [{"batch": batch, "ratio": ratio} for batch, ratio in each.speedups.items()],
    }
