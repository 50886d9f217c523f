"""An artifact in, an artifact out whose model answers more like the original."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from spm_compress.checkpoint.artifact import Artifact, FittedLayer
from spm_compress.checkpoint.files import sha256_of
from spm_compress.checkpoint.huggingface import load_huggingface, member_of, module_of
from spm_compress.checkpoint.source import Source
from spm_compress.compress.layers import stored_as
from spm_compress.compress.module import load_model
from spm_compress.distill.loop import Distilled, distill
from spm_compress.distill.samples import samples
from spm_compress.distill.settings import DistillSettings, Watch
from spm_compress.errors import UsageError
from spm_compress.fitting.fit import relative_error, stored_form
from spm_compress.fitting.settings import FitResult
from spm_compress.layers.linear import SPMLinear
from spm_compress.operator.spm import SPM
from spm_compress.version import __version__

__all__ = ["Recovered", "recover"]


@dataclass(frozen=True)
class Recovered:
    """The artifact with the trained numbers, both models, and what the training reached."""

    artifact: Artifact
    teacher: nn.Module
    student: nn.Module
    distilled: Distilled


def recover(
    artifact: Artifact,
    source: Source,
    data: Path,
    settings: DistillSettings,
    *,
    beside: Path,
    device: str = "cpu",
    watch: Watch | None = None,
    state: Path | None = None,
) -> Recovered:
    """Train the SPM layers of an artifact to answer as the model it was fitted from does on data; no labels.

    source: that model, a Hugging Face folder; data: `calibration.read_batches`; beside: the folder that the new
    artifact is going to lie in; state: where the training is kept, so that it can be resumed (`distill`).
    Deterministic on one machine. Raises what `distill` raises, and UsageError for a source that torch cannot train.
    """
    if source.config is None:
        raise UsageError(
            f"{source.path}: has no model that torch can train; distill needs a Hugging Face folder "
            "(in Python, spm_compress.distill.distill takes any two modules)"
        )
    teacher, student = load_huggingface(source), load_model(artifact, source)
    loader, held = samples(teacher, source, data, settings)
    parameters = dict(student.named_parameters())
    kept = {member: name for name in artifact.tensors if (member := member_of(name, student, parameters)) is not None}
    recipe = {
        "artifact": _digest(artifact),
        "data": sha256_of(data) if data.is_file() else data.name,
        "torch": torch.__version__,
    }
    distilled = distill(
        teacher.to(device),
        student.to(device),
        loader,
        held,
        settings,
        watch=watch,
        state=state,
        recipe=recipe,
        storable=list(kept),
    )
    teacher.cpu()
    student.cpu()
    trained = {kept[name]: p.detach() for name, p in student.named_parameters() if p.requires_grad and name in kept}
    tensors = {name: trained[name].to(old.dtype) if name in trained else old for name, old in artifact.tensors.items()}
    layers = [_trained_layer(layer, student, source.read(layer.name), tensors) for layer in artifact.layers]
    recovery = {
        "steps": distilled.steps,
        "loss": distilled.loss,
        "agreement_before": distilled.before,
        "agreement_after": distilled.after,
        "data": {"file": data.name, "sha256": recipe["data"]},
        "settings": settings.to_json(),
        "retrained": sorted({*trained, *artifact.retrained}),
    }
    found = replace(
        artifact,
        source={**artifact.source, "path": os.path.relpath(source.path, beside)},
        layers=tuple(layers),
        versions={"spm_compress": __version__, "torch": torch.__version__},
        tensors=tensors,
        recovery=recovery,
    )
    return Recovered(found, teacher, student, distilled)


def _digest(artifact: Artifact) -> str:
    """Return the SHA-256 of all numbers of an artifact."""
    digest = hashlib.sha256()
    numbers = [x for layer in artifact.layers for named in layer.spm.numbers for x in named.values()]
    for array in (*numbers, *artifact.tensors.values()):
        digest.update(array.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _trained_layer(
    layer: FittedLayer, student: nn.Module, weight: Tensor, tensors: Mapping[str, Tensor]
) -> FittedLayer:
    """Return the layer with the student's numbers in the stored form; its errors are against the original weight."""
    name = module_of(layer.name, student, dict(student.named_modules()))
    assert name is not None
    module = student.get_submodule(name)
    assert isinstance(module, SPMLinear)
    live = module.spm()
    spm = stored_form(SPM(live.structure, [{key: x.detach() for key, x in named.items()} for named in live.numbers]))
    dtype = next(x.dtype for named in layer.spm.numbers for name, x in named.items() if name != "diagonals")
    error = relative_error(weight.float(), spm)
    spm, error = stored_as(FitResult(spm, error, 0, 0, ""), weight.float(), dtype)
    bias = layer.name.removesuffix("weight") + "bias"
    shift = None if bias in tensors or module.bias is None else module.bias.detach().float()
    # Errors of outputs were measured before, and nothing says what they are now.
    return replace(layer, spm=spm, error=error, shift=shift, output_error=None, svd_output_error=None)
