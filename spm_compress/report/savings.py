"""What a fit saved and what it cost, as data: every figure counted from what is stored."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spm_compress.checkpoint.artifact import Artifact, FittedLayer, KeptTensor, artifact_bytes
from spm_compress.checkpoint.tensor_info import DECODED, ITEM_BYTES
from spm_compress.codecs import FLOAT32, in_words, read_codec
from spm_compress.forms.dense import Dense
from spm_compress.forms.form import form_text, numbers_of

__all__ = ["SCHEMA", "LayerSavings", "Savings", "Size", "summarize", "to_json"]

SCHEMA = "spm-compress/report/3"

# Relative weight errors that the sentence in plain words turns on. Round-to-nearest int4, which usually
# needs repair, is at 0.15 on MiniLM; its SVD at half the size, with 0.50, keeps 31 % of the cosine.
_CLOSE, _BROKEN = 0.05, 0.3


@dataclass(frozen=True)
class Size:
    """Something counted before (dense) and after (as stored)."""

    before: int
    after: int

    @property
    def kept(self) -> float:
        """Share that is left, 0 to 1 or more."""
        return self.after / self.before if self.before else 1.0

    @property
    def removed(self) -> float:
        """Share that is gone: 1 - kept."""
        return 1.0 - self.kept

    def __add__(self, other: Size) -> Size:
        return Size(self.before + other.before, self.after + other.after)


@dataclass(frozen=True)
class LayerSavings:
    """One fitted weight. multiply_adds: for one row; error, svd_error: relative Frobenius error.

    output_error, svd_output_error: the same of the outputs on calibration data, where there was any.
    svd_error: None of a dense map that stays. form: what is computed in its place, size: what tells forms of that kind
    apart (`Form.summary`); codec: name of that of its numbers; reason: why they are not in the codec that was asked
    for; is_table: whether rows of it are looked up.
    """

    name: str
    shape: tuple[int, int]
    form: str
    size: Mapping[str, int | str]
    parameters: Size
    bytes: Size
    multiply_adds: Size
    error: float
    svd_error: float | None
    output_error: float | None
    svd_output_error: float | None
    reason: str | None
    codec: str
    is_table: bool

    @property
    def form_text(self) -> str:
        """The form in words, and how its numbers are stored where that is not float32."""
        return stored_text(self.form, self.size, self.codec, is_table=self.is_table)

    @property
    def bits(self) -> float:
        """Bits a weight, everything that is stored counted."""
        return 8 * self.bytes.after / math.prod(self.shape)


@dataclass(frozen=True)
class Savings:
    """The whole report.

    fitted: the replaced weights together; model: everything, tensors left dense included, and of the
    artifact's bytes also its header, so that `model.bytes.after` is what lies on the disk.
    """

    layers: tuple[LayerSavings, ...]
    kept: tuple[KeptTensor, ...]
    fitted_parameters: Size
    fitted_bytes: Size
    fitted_multiply_adds: Size
    model_parameters: Size
    model_bytes: Size
    mean_error: float
    mean_svd_error: float | None
    mean_output_error: float | None
    mean_svd_output_error: float | None
    verdict: str
    recovery: Recovery | None = None

    @property
    def fitted_bits(self) -> float:
        """Bits a weight of the replaced ones together."""
        weights = self.fitted_parameters.before
        return 8 * self.fitted_bytes.after / weights if weights else 0.0


@dataclass(frozen=True)
class Recovery:
    """A training after the fit: its steps, the name of its data, agreement with the original on what was held out.

    imported_by: what made an ONNX model one that torch trains, with its version; None of any other model.
    """

    steps: int
    data: str
    loss: str
    before: float
    after: float
    imported_by: str | None = None


def stored_text(kind: str, size: Mapping[str, int | str], codec: str, *, is_table: bool) -> str:
    """Return a form in a few words, and how its numbers are stored where that is not float32."""
    form = form_text(kind, size) + (" table" if is_table else "")
    return form if codec == FLOAT32.name else f"{form} in {in_words(read_codec(codec))}"


def summarize(artifact: Artifact, path: Path) -> Savings:
    """Count an artifact that lies at `path`."""
    layers = tuple(_layer(layer) for layer in artifact.layers)
    nothing = Size(0, 0)
    parameters = sum((layer.parameters for layer in layers), nothing)
    size = sum((layer.bytes for layer in layers), nothing)
    # Integer buffers (position ids) take bytes but are no parameters.
    kept_parameters = sum(math.prod(kept.shape) for kept in artifact.kept if kept.dtype in ITEM_BYTES)
    # Kept tensors of a quantized file are stored as the float32 that they decode to; before, they were as in that file.
    kept_bytes = sum(
        int(math.prod(kept.shape) * DECODED[kept.dtype]) if kept.dtype in DECODED else kept.bytes
        for kept in artifact.kept
    )
    mean_error = _mean([layer.error for layer in layers]) or 0.0
    recovery = _recovery(artifact)
    outputs = [layer.output_error for layer in layers if layer.output_error is not None]
    svd_outputs = [layer.svd_output_error for layer in layers if layer.svd_output_error is not None]
    return Savings(
        layers=layers,
        kept=artifact.kept,
        fitted_parameters=parameters,
        fitted_bytes=size,
        fitted_multiply_adds=sum((layer.multiply_adds for layer in layers), nothing),
        model_parameters=parameters + Size(kept_parameters, kept_parameters),
        model_bytes=Size(size.before + kept_bytes, artifact_bytes(path)),
        mean_error=mean_error,
        mean_svd_error=_mean([layer.svd_error for layer in layers if layer.svd_error is not None]),
        mean_output_error=_mean(outputs),
        mean_svd_output_error=_mean(svd_outputs),
        verdict=_trained_verdict(recovery)
        if artifact.recovery is not None
        else _verdict(mean_error, max((layer.error for layer in layers), default=None), outputs, _advice(artifact)),
        recovery=recovery,
    )


def _recovery(artifact: Artifact) -> Recovery | None:
    found = artifact.recovery
    if found is None or "steps" not in found:
        return None  # trained by somebody's own program
    before, after = float(found["agreement_before"]), float(found["agreement_after"])
    by = found.get("imported_by")
    steps, data, loss = int(found["steps"]), str(found["data"]["file"]), str(found["loss"])
    return Recovery(steps, data, loss, before, after, None if by is None else str(by))


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _layer(layer: FittedLayer) -> LayerSavings:
    out, into = layer.shape
    # Tied names are one weight, which a graph holds once: copies in a checkpoint would be savings that no export has.
    dense_bytes = int(out * into * ITEM_BYTES[layer.dtype])
    return LayerSavings(
        name=layer.name,
        shape=layer.shape,
        form=layer.form.kind,
        size=layer.form.summary,
        parameters=Size(out * into, numbers_of(layer.form)),
        bytes=Size(dense_bytes, layer.stored_bytes),
        multiply_adds=Size(out * into, layer.form.multiply_adds),
        error=layer.error,
        svd_error=layer.svd_error,
        output_error=layer.output_error,
        svd_output_error=layer.svd_output_error,
        reason=layer.reason,
        codec=layer.stored.codec.name,
        is_table=layer.is_table,
    )


def _advice(artifact: Artifact) -> str:
    """Return what to do about a model that does not work.

    Artifacts of before this was recorded say it of factories, and say of no ONNX model that it can be trained.
    """
    if all(isinstance(layer.form, Dense) for layer in artifact.layers):
        return "store more bits, or fit them to calibration data"
    is_import = bool(artifact.source.get("onnx")) and "untrainable" not in artifact.source
    if artifact.source.get("live", "factory" in artifact.source) or is_import:
        return "train its SPM layers further before use (distill), or use more stages"
    if "untrainable" in artifact.source:
        why = artifact.source["untrainable"]
        return f"use more stages, or fit the model that the graph was exported from; distill cannot train it ({why})"
    return "use more stages, or fit its Hugging Face folder, factory, ONNX model or .pt2, which distill can train"


def _verdict(mean: float, worst: float | None, outputs: Sequence[float], advice: str) -> str:
    if worst is None:
        return "No weight was replaced: the model is what it was. The report says why, weight by weight."
    measured = f"the mean relative weight error is {mean:.2f} (worst layer {worst:.2f})"
    if outputs:
        return _output_verdict(sum(outputs) / len(outputs), max(outputs), advice)
    if worst < _CLOSE:
        return f"The weights are recovered closely: {measured}. Check the model's accuracy before use."
    if mean < _BROKEN:
        return (
            f"The weights are recovered in part: {measured}. Expect the model to lose accuracy; measure it before use."
        )
    return (
        f"The weights are not recovered: {measured}, where 1.00 is what all zeros reach. "
        f"The model will not work without recovery: {advice}."
    )


def _trained_verdict(recovery: Recovery | None) -> str:
    if recovery is None:
        return (
            "The model was trained further after its fit: the errors of its weights say nothing of its answers. "
            "Measure the model's accuracy before use."
        )
    kind = "share of equal answers" if recovery.loss == "logits" else "rank correlation of similarities"
    return (
        f"The model was trained to answer as the original, not to have its weights: their {kind} on held-out data is "
        f"{recovery.after:.2f}, where 1.00 is the same. Measure the model's accuracy before use."
    )


def _output_verdict(mean: float, worst: float, advice: str) -> str:
    measured = (
        f"the mean relative error of the layers' outputs on the calibration data is {mean:.2f} (worst {worst:.2f})"
    )
    if worst < _CLOSE:
        return f"The outputs are recovered closely: {measured}. Check the model's accuracy before use."
    if mean < _BROKEN:
        return (
            f"The outputs are recovered in part: {measured}. Expect the model to lose accuracy; measure it before use."
        )
    return (
        f"The outputs are not recovered: {measured}, where 1.00 is what their mean alone reaches. "
        f"The model will not work without recovery: {advice}."
    )


def to_json(savings: Savings) -> dict[str, Any]:
    """Return the report as JSON values, with `schema` as its version."""

    def size(each: Size) -> dict[str, float]:
        return {"before": each.before, "after": each.after, "kept": each.kept, "removed": each.removed}

    return {
        "schema": SCHEMA,
        "verdict": savings.verdict,
        "fitted": {
            "layers": len(savings.layers),
            "parameters": size(savings.fitted_parameters),
            "bytes": size(savings.fitted_bytes),
            "multiply_adds": size(savings.fitted_multiply_adds),
            "bits": savings.fitted_bits,
            "mean_error": savings.mean_error,
            "mean_svd_error": savings.mean_svd_error,
            "mean_output_error": savings.mean_output_error,
            "mean_svd_output_error": savings.mean_svd_output_error,
        },
        "model": {"parameters": size(savings.model_parameters), "bytes": size(savings.model_bytes)},
        "layers": [
            {
                "name": layer.name,
                "shape": layer.shape,
                "form": {"kind": layer.form, **layer.size},
                "parameters": size(layer.parameters),
                "bytes": size(layer.bytes),
                "multiply_adds": size(layer.multiply_adds),
                "error": layer.error,
                "svd_error": layer.svd_error,
                "output_error": layer.output_error,
                "svd_output_error": layer.svd_output_error,
                "reason": layer.reason,
                "codec": layer.codec,
                "bits": layer.bits,
                "is_table": layer.is_table,
            }
            for layer in savings.layers
        ],
        "kept": [asdict(kept) for kept in savings.kept],
        "recovery": None if savings.recovery is None else asdict(savings.recovery),
    }
