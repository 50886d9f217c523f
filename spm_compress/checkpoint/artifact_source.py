"""The model that an artifact was fitted from."""

from __future__ import annotations

from pathlib import Path

from spm_compress.checkpoint.artifact import Artifact
from spm_compress.checkpoint.source import Source, open_source
from spm_compress.errors import ArtifactError

__all__ = ["source_files", "source_of"]


def source_files(artifact: Artifact, artifact_path: Path) -> list[Path]:
    """Return where the files of the model that was fitted were then, whether they are still there or not."""
    path = artifact_path.parent / str(artifact.source["path"])
    folder = path if path.is_dir() else path.parent
    return [path, *(folder / name for name in artifact.source["files"])]


def source_of(
    artifact: Artifact,
    artifact_path: Path,
    given: Path | None = None,
    factory: str | None = None,
    key: str | None = None,
) -> Source:
    """Open the model that an artifact was fitted from: the path and key given, or those it recorded.

    factory: of a model that a function builds; what the artifact recorded is never imported by itself.
    Raises ArtifactError if it is gone or has changed since the fit.
    """
    recorded_factory = artifact.source.get("factory")
    if recorded_factory and factory is None:
        raise ArtifactError(
            f"{artifact_path}: was fitted from what {recorded_factory} builds; to run that code again, say "
            f"`factory` {recorded_factory}"
        )
    path = given or artifact_path.parent / str(artifact.source["path"])
    built = recorded_factory in artifact.source["files"]
    if not built and not path.exists():
        raise ArtifactError(
            f"{path}: the model that was fitted is not there; name it with `source`, "
            "or, to export, its graph with `graph` dense.onnx"
        )
    source = open_source(None if built else path, factory, key or (None if built else artifact.source.get("key")))
    recorded = artifact.source["files"]
    for name, found in source.hashes().items():
        if name in recorded and recorded[name] != found:
            raise ArtifactError(f"{path}: {name} has changed since it was fitted; run fit again, or restore it")
    return source
