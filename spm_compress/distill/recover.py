"""An artifact in, an artifact out whose model answers more like the original."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from spm_compress.checkpoint.artifact import Artifact
from spm_compress.checkpoint.files import sha256_of
from spm_compress.checkpoint.imported_model import ImportedModel
from spm_compress.checkpoint.modules import is_live, load_module
from spm_compress.checkpoint.onnx_source import OnnxSource
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.unwrapping import copied
from spm_compress.codecs import Rounding
from spm_compress.compress.live import frozen, load_model, parameters_of, refreshed, storable
from spm_compress.compress.module import apply_artifact
from spm_compress.distill.imported import is_imported, require_trainable, require_true_import
from spm_compress.distill.loop import Distilled, distill
from spm_compress.distill.samples import samples
from spm_compress.distill.settings import DistillSettings, OnReport
from spm_compress.errors import UsageError
from spm_compress.forms.dense import Dense
from spm_compress.forms.stored import StoredOperator

__all__ = ["Recovered", "recover"]


@dataclass(frozen=True)
class Recovered:
    """The artifact with the trained numbers, both models, and what the training reached.

    frozen: fitted weights that were not trained, because the model computes with their matrices (`compress.live`).
    """

    artifact: Artifact
    teacher: nn.Module
    student: nn.Module
    distilled: Distilled
    frozen: tuple[str, ...] = ()


def recover(
    artifact: Artifact,
    source: Source,
    data: Path,
    settings: DistillSettings,
    *,
    beside: Path,
    device: str = "cpu",
    watch: OnReport | None = None,
    state: Path | None = None,
    cache: Path | None = None,
) -> Recovered:
    """Train the fitted weights of an artifact to answer as the model it was fitted from does on data; no labels.

    What is stored in few bits, or in float16, trains through that rounding, and is stored as it was judged.

    source: that model, a Hugging Face folder, what a factory builds, or a graph (ONNX, .pt2), which is imported; data:
    `calibration.read_batches`; beside: the folder that the new artifact is going to lie in; state: where the training
    is kept, so that it can be resumed; cache: where the teacher's answers are, for the next one (`distill`).
    Deterministic on one machine. Raises what `distill` raises, and UsageError for a source that torch cannot train.
    """
    if not is_live(source) and not is_imported(source):
        raise UsageError(
            f"{source.path}: has no model that torch can train; distill needs a Hugging Face folder, an ONNX model, a "
            ".pt2 or a `factory` (in Python, spm_compress.distill.distill takes any two modules)"
        )
    if is_imported(source):
        require_trainable(source, [name for layer in artifact.layers for name in layer.names])
    teacher = load_module(source)
    student = _student(artifact, source, teacher)
    untrained = frozen(artifact, student)
    if artifact.layers and len(untrained) == len(artifact.layers):
        raise UsageError(
            f"{', '.join(untrained[:3])}: belong to no linear layer inside the model, which computes with their "
            "matrices and so has no SPM layer to train; use more stages"
        )
    held = parameters_of(artifact, student)
    _begin_latents(artifact, student, source, held)
    loader, validation = samples(teacher, source, data, settings)
    if isinstance(teacher, ImportedModel):
        require_true_import(teacher, source, validation[0])
    recipe = {
        "artifact": _digest(artifact),
        "data": sha256_of(data) if data.is_file() else data.name,
        "torch": torch.__version__,
    }
    distilled = distill(
        teacher.to(device),
        student.to(device),
        loader,
        validation,
        settings,
        watch=watch,
        state=state,
        cache=cache,
        recipe=recipe,
        storable=list(storable(artifact, student)),
        stored={
            name: layer.stored.arrays[array]
            for layer in artifact.layers
            for array, name in held.get(layer.name, {}).items()
        },
    )
    teacher.cpu()
    student.cpu()
    recovery = {
        "steps": distilled.steps,
        "loss": distilled.loss,
        "agreement_before": distilled.before,
        "agreement_after": distilled.after,
        "data": {"file": data.name, "sha256": recipe["data"]},
        "settings": settings.to_json(),
    }
    if isinstance(teacher, ImportedModel) and teacher.importer is not None:
        recovery["imported_by"] = teacher.importer
    if untrained:
        recovery["frozen"] = list(untrained)
    stored = {
        layer.name: StoredOperator(
            layer.stored.form, {array: distilled.stored[name] for array, name in held[layer.name].items()}
        )
        for layer in artifact.layers
        if layer.name in held
    }
    found = refreshed(artifact, student, source, beside=beside, recovery=recovery, stored=stored)
    return Recovered(found, teacher, student, distilled, untrained)


def _student(artifact: Artifact, source: Source, teacher: nn.Module) -> nn.Module:
    """Return the compressed model; of an imported graph from a copy, which is made in an eighth of the time."""
    if not isinstance(source, OnnxSource):
        return load_model(artifact, source, as_stored=True)
    student = copied(teacher)
    apply_artifact(student, artifact, as_stored=True)
    return student


@torch.no_grad()
def _begin_latents(
    artifact: Artifact, student: nn.Module, source: Source, held: Mapping[str, Mapping[str, str]]
) -> None:
    """Begin the latents of dense maps near the original weights: what is rounded is what was fitted all the same."""
    parameters = dict(student.named_parameters())
    for layer in artifact.layers:
        if layer.name in held and isinstance(layer.stored.form, Dense):
            latents = Rounding.latents(layer.stored.arrays["weight"], source.read(layer.name))
            parameters[held[layer.name]["weight"]].copy_(latents)


def _digest(artifact: Artifact) -> str:
    """Return the SHA-256 of all numbers of an artifact."""
    digest = hashlib.sha256()
    numbers = [x for layer in artifact.layers for array in layer.stored.arrays.values() for x in array.parts.values()]
    for array in (*numbers, *artifact.tensors.values()):
        digest.update(array.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
