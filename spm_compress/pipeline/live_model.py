"""A live module compressed in place, the same way as a file: one selection, one fit, one kind of artifact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from spm_compress.checkpoint.artifact import Artifact, write_artifact
from spm_compress.checkpoint.module_source import ModuleSource, open_module
from spm_compress.checkpoint.unwrapping import use_linears
from spm_compress.compress.live import refreshed
from spm_compress.compress.model import fit_model
from spm_compress.compress.module import apply_artifact
from spm_compress.compress.selection import NONE
from spm_compress.compress.settings import CompressSettings
from spm_compress.errors import UsageError
from spm_compress.export.files import Exported, export_onnx
from spm_compress.export.settings import ExportSettings
from spm_compress.forms.settings import FitSettings

__all__ = ["Compressed", "compress_model"]

_NO_LAYER = "not the weight of a linear layer"


@dataclass(frozen=True)
class Compressed:
    """A module that was compressed in place, and what became of it.

    fitted: the artifact as it was fitted; source: a copy of the dense module, against which errors are measured and
    from which the graph of an export is made. It is in memory as long as this object.
    """

    model: nn.Module
    fitted: Artifact
    source: ModuleSource

    @property
    def replaced(self) -> dict[str, float]:
        """Name of a layer -> relative error of the weight that was fitted for it."""
        return {_layer_of(name): layer.error for layer in self.fitted.layers for name in layer.names}

    @property
    def kept(self) -> dict[str, str]:
        """Name of a linear layer that stays -> why."""
        linears = _linears(self.source)
        return {_layer_of(kept.name): kept.reason for kept in self.fitted.kept if kept.name in linears}

    def artifact(self, beside: Path | None = None) -> Artifact:
        """Return the artifact with the numbers that the module has now. beside: the folder that it is going to lie in.

        Raises ArtifactError if the module has lost one of its layers.
        """
        return refreshed(self.fitted, self.model, self.source, beside=beside or Path())

    def save(self, path: Path | str) -> None:
        """Write the artifact as the module is now: `report`, `expand` and `apply_artifact` take it as any other.

        Raises SpmError if it cannot be written.
        """
        write_artifact(self.artifact(Path(path).parent), Path(path))

    def export_onnx(
        self, path: Path | str, example_inputs: Any = None, settings: ExportSettings | None = None
    ) -> Exported:
        """Write the module as it is now as ONNX, verified against itself.

        example_inputs: a tensor, a tuple of them or a mapping of keyword arguments, of two samples or more; those that
        `compress_model` was given, if None. Raises what `export_onnx` raises.
        """
        source = self.source if example_inputs is None else self.source.called_with(example_inputs)
        return export_onnx(self.artifact(Path(path).parent), Path(path), source=source, settings=settings)


def compress_model(
    model: nn.Module,
    stages: int = 10,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_features: int = 32,
    settings: FitSettings | CompressSettings | None = None,
    example_inputs: Any = None,
) -> Compressed:
    """Replace the linear layers of a module (and Conv1D of transformers) by SPMLinear layers fitted to them, in place.

    include, exclude: globs on names of layers ("encoder.*") or of their weights; settings: of the fit, in the place of
    `stages`, or of everything. example_inputs: as the module is called; with them a run of it shows how each weight is
    used, and it can be exported. Layers that share a weight go on sharing it; a weight that something else uses too (an
    embedding) stays, as does a layer that would not get smaller. The output projection of `nn.MultiheadAttention` is
    replaced as well: that module reads `.weight`, so it saves memory there, not time.

    Raises UsageError for a glob without a match or if nothing is left to fit, SourceError or FitError naming a weight
    that cannot be fitted.
    """
    if isinstance(model, nn.Linear):
        raise UsageError("the model is itself a linear layer; use SPMLinear.from_linear on it")
    use_linears(model)
    source = open_module(model, example_inputs)
    if not isinstance(settings, CompressSettings):
        fit = settings or FitSettings(stages=stages)
        settings = CompressSettings(fit, include=tuple(include), exclude=tuple(exclude), min_features=min_features)
    linears = _linears(source)
    others = [name for name, info in source.tensors().items() if len(info.shape) > 1 and name not in linears]
    settings = replace(
        settings,
        include=_weights(settings.include, source),
        exclude=_weights(settings.exclude, source),
        formless=tuple(map(_escaped, others)),
    )
    artifact = fit_model(source, settings, beside=Path())
    kept = (replace(each, reason=_NO_LAYER) if each.name in others else each for each in artifact.kept)
    # The tensors are those of the source, which is a copy: training the module does not change them.
    artifact = replace(artifact, kept=tuple(kept))
    with torch.no_grad():
        apply_artifact(model, artifact)
    return Compressed(model, artifact, source)


def _linears(source: ModuleSource) -> Mapping[str, nn.Module]:
    modules = source.module.named_modules(remove_duplicate=False)
    return {f"{name}.weight": module for name, module in modules if isinstance(module, nn.Linear)}


def _layer_of(name: str) -> str:
    return name.removesuffix(".weight")


def _weights(patterns: Sequence[str], source: ModuleSource) -> tuple[str, ...]:
    """Return globs on names of tensors for globs on names of layers; a glob that fits a tensor stays."""
    names = source.tensors()
    return tuple(
        pattern if pattern == NONE or any(fnmatchcase(name, pattern) for name in names) else f"{pattern}.weight"
        for pattern in patterns
    )


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
