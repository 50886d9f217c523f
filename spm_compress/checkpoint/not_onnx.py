"""What a file is that is given in the place of an ONNX model, and what to do with it."""

from __future__ import annotations

import json
from pathlib import Path

from spm_compress.checkpoint.artifact import ARTIFACT_KEY

__all__ = ["told_apart"]


def told_apart(path: Path) -> str | None:
    """Return in words what a file or folder is by its content, None for what may be an ONNX model."""
    if path.is_dir():
        if next(path.glob("*.onnx"), None) is not None:
            return "is a folder; name the .onnx file in it"
        return "is a folder without an .onnx file; fit and export its model: `export_onnx`"
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] == b"PK\x03\x04":
            return "is an archive, as torch.save and torch.export write them, and no ONNX model; export the model first"
        if start[4:8] == b"ORTM":
            return "is in ONNX Runtime's own format, whose graph is not read here; give the .onnx file it was made of"
        header = int.from_bytes(start, "little")
        if not 2 <= header <= path.stat().st_size - 8 or file.read(1) != b"{":
            return None
        try:
            metadata = json.loads(b"{" + file.read(header - 1)).get("__metadata__", {})
        except (ValueError, RecursionError):
            return None
    if ARTIFACT_KEY in metadata:
        return f"is an artifact; export it first: `export_onnx` {path}"
    return "holds tensors without a graph; fit it and export what comes out: `export_onnx`"
