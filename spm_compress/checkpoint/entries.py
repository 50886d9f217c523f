"""One entry of a manifest: a fitted weight or a tensor that stays as it is, as JSON values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from spm_compress.checkpoint.keys import BIAS_CORRECTION, usual_stem
from spm_compress.checkpoint.tensor_info import MOST_KERNEL_DIMS
from spm_compress.codecs import Codec, StoredArray, part_key, read_codec
from spm_compress.forms.form import Form, Operator, under
from spm_compress.forms.json_values import whole
from spm_compress.forms.registry import read_form
from spm_compress.forms.stored import StoredOperator

__all__ = [
    "FittedLayer",
    "KeptTensor",
    "as_in_source",
    "kept_json",
    "layer_json",
    "layer_tensors",
    "read_kept",
    "read_layer",
]


@dataclass(frozen=True)
class FittedLayer:
    """One weight that was replaced.

    names: the tensor's name, then those of tensors tied to it; shape: (out_features, in_features);
    dtype: of the dense weight, safetensors' name; sha256: of its values as float32, C order;
    error: relative Frobenius error of what is stored; svd_error: of a truncated SVD of as many numbers, None of a
    dense map that stays.
    output_error, svd_output_error: the same of the outputs, weighted by the covariance of the inputs, and
    bias_correction: (out_features,) what the bias is raised by, (W - S) mean of the inputs, where there was calibration
    data. is_table: whether rows of it are looked up. kernel_dims: as in TensorInfo. reason: why the numbers are not in
    the codec that was asked for.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str
    sha256: str
    error: float
    svd_error: float | None
    steps: int
    restarts: int
    start: str
    stored: StoredOperator
    output_error: float | None = None
    svd_output_error: float | None = None
    bias_correction: Tensor | None = None
    reason: str | None = None
    is_table: bool = False
    kernel_dims: int = 0

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.names[0]

    @property
    def form(self) -> Form:
        """What is computed in the place of the dense product."""
        return self.stored.form

    @property
    def operator(self) -> Operator:
        """What the stored numbers decode to, float32."""
        return self.stored.decoded()

    @property
    def stored_bytes(self) -> int:
        """Bytes of everything stored for the layer: arrays, index tables and the bias correction."""
        return self.stored.nbytes + (0 if self.bias_correction is None else self.bias_correction.nbytes)


def as_in_source(layer: FittedLayer, matrix: Tensor) -> Tensor:
    """Return a matrix (out, in) in the shape that the weight has in its source."""
    return matrix.reshape(*layer.shape, *[1] * layer.kernel_dims)


@dataclass(frozen=True)
class KeptTensor:
    """One tensor that stays as it is, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    reason: str


def layer_tensors(layer: FittedLayer) -> dict[str, Tensor]:
    """Return what is stored of a layer, by what follows the stem of its keys: ARRAY, ARRAY.PART or TABLE."""
    found = layer.stored.tensors
    if layer.bias_correction is not None:
        found[BIAS_CORRECTION] = layer.bias_correction
    return {name: tensor.contiguous() for name, tensor in found.items()}


def layer_json(layer: FittedLayer, stem: str) -> dict[str, Any]:
    """Return a layer's entry. stem: what its arrays' keys begin with; said only where it is not the usual one."""
    return {
        **({} if stem == usual_stem(layer.name) else {"stem": stem}),
        "names": layer.names,
        "shape": layer.shape,
        "dtype": layer.dtype,
        "sha256": layer.sha256,
        "error": layer.error,
        "svd_error": layer.svd_error,
        "steps": layer.steps,
        "restarts": layer.restarts,
        "start": layer.start,
        "output_error": layer.output_error,
        "svd_output_error": layer.svd_output_error,
        "reason": layer.reason,
        "is_table": layer.is_table,
        **({"kernel_dims": layer.kernel_dims} if layer.kernel_dims else {}),
        "form": {"kind": layer.form.kind, **layer.form.to_json()},
        "codecs": {name: codec.name for name, codec in layer.stored.codecs.items()},
    }


def kept_json(kept: KeptTensor, key: str) -> dict[str, Any]:
    """Return a kept tensor's entry. key: what it is stored under; said only where that is not its name."""
    return {**asdict(kept), **({} if key == kept.name else {"key": key})}


def read_layer(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FittedLayer:
    """Return the layer of an entry, whose arrays are among `tensors`.

    Raises LookupError, TypeError, ValueError, ArithmeticError or AttributeError for what is no such entry.
    """
    names = entry["names"]
    if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
        raise TypeError(f"names that are no list of texts: {names!r}")
    name = names[0]
    own = under(tensors, str(entry.get("stem", usual_stem(name))))
    form = read_form(entry["form"], own)
    arrays = {
        array: _read_array(array, read_codec(entry["codecs"][array]), shape, own)
        for array, shape in form.shapes.items()
    }
    out_features, in_features = map(whole, entry["shape"])
    if (out_features, in_features) != (form.out_features, form.in_features):
        raise ValueError(f"{name}: form and shape differ")
    correction = own.get(BIAS_CORRECTION)
    if correction is not None and tuple(correction.shape) != (out_features,):
        raise ValueError(f"{name}: a bias correction of shape {tuple(correction.shape)}, not {(out_features,)}")
    kernel_dims = whole(entry.get("kernel_dims", 0))
    if not 0 <= kernel_dims <= MOST_KERNEL_DIMS:
        raise ValueError(f"{name}: a kernel of {kernel_dims} dimensions")
    return FittedLayer(
        names=tuple(names),
        shape=(out_features, in_features),
        dtype=str(entry["dtype"]),
        sha256=str(entry["sha256"]),
        error=float(entry["error"]),
        svd_error=_optional(entry["svd_error"]),
        steps=whole(entry["steps"]),
        restarts=whole(entry["restarts"]),
        start=str(entry["start"]),
        stored=StoredOperator(form, arrays),
        output_error=_optional(entry.get("output_error")),
        svd_output_error=_optional(entry.get("svd_output_error")),
        bias_correction=correction,
        reason=None if entry.get("reason") is None else str(entry["reason"]),
        is_table=bool(entry.get("is_table", False)),
        kernel_dims=kernel_dims,
    )


def _read_array(name: str, codec: Codec, shape: tuple[int, ...], own: Mapping[str, Tensor]) -> StoredArray:
    parts = {part: own[part_key(name, part)] for part in codec.part_names()}
    if not codec.fits(shape):
        raise ValueError(f"{name} of shape {shape} in {codec.name}")
    found = StoredArray(codec, parts, shape)
    found.decoded()  # which finds out whether the parts are those of such an array
    return found


def read_kept(entry: Mapping[str, Any], tensor: Tensor) -> KeptTensor:
    """Return the kept tensor of an entry. Raises as `read_layer`, also where the shapes differ."""
    kept = KeptTensor(
        str(entry["name"]),
        tuple(map(whole, entry["shape"])),
        str(entry["dtype"]),
        whole(entry["bytes"]),
        str(entry["reason"]),
    )
    if tuple(tensor.shape) != kept.shape:
        raise ValueError(f"{kept.name} has shape {tuple(tensor.shape)}, not {kept.shape}")
    return kept


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
