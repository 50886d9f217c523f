"""The model that an artifact was fitted from."""

from __future__ import annotations

from pathlib import Path

from spm_compress.checkpoint.artifact import Artifact
from spm_compress.checkpoint.source import Source, open_source
from spm_compress.errors import ArtifactError

__all__ = ["source_of"]


def source_of(artifact: Artifact, artifact_path: Path, given: Path | None = None) -> Source:
    """Open the model that an artifact was fitted from: the path given, or the one it recorded.

    Raises ArtifactError if it is gone or has changed since the fit.
    """
    path = given or artifact_path.parent / str(artifact.source["path"])
    if not path.exists():
        raise ArtifactError(
            f"{path}: the model that was fitted is not there; name it with --source, "
            "or, to export, its graph with --graph dense.onnx"
        )
    source = open_source(path)
    recorded = artifact.source["files"]
    for name, found in source.hashes().items():
        if name in recorded and recorded[name] != found:
            raise ArtifactError(f"{path}: {name} has changed since it was fitted; run fit again, or restore it")
    return source
