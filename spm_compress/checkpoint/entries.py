"""One entry of a manifest: a fitted weight or a tensor that stays as it is, as JSON values and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from spm_compress.checkpoint.keys import usual_stem
from spm_compress.checkpoint.structures import read_structure, structure_json
from spm_compress.operator.spm import SPM

__all__ = ["FittedLayer", "KeptTensor", "kept_json", "layer_json", "read_kept", "read_layer"]


@dataclass(frozen=True)
class FittedLayer:
    """One weight that was replaced.

    names: the tensor's name, then those of tensors tied to it; shape: (out_features, in_features);
    dtype: of the dense weight, safetensors' name; sha256: of its values as float32, C order;
    error: relative Frobenius error of what is stored; svd_error: of a truncated SVD of as many numbers.
    output_error, svd_output_error: the same of the outputs, weighted by the covariance of the inputs, and
    shift: (out_features,) what the bias is raised by, (W - S) mean of the inputs, where there was calibration data.
    """

    names: tuple[str, ...]
    shape: tuple[int, int]
    dtype: str
    sha256: str
    error: float
    svd_error: float
    steps: int
    restarts: int
    start: str
    spm: SPM
    output_error: float | None = None
    svd_output_error: float | None = None
    shift: Tensor | None = None

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.names[0]

    @property
    def stored_bytes(self) -> int:
        """Bytes of everything stored for the layer: mixers, diagonals, low-rank term, index tables and shift."""
        numbers = sum(array.nbytes for named in self.spm.numbers for array in named.values())
        shift = 0 if self.shift is None else self.shift.nbytes
        return numbers + self.spm.structure.index_bytes + shift


@dataclass(frozen=True)
class KeptTensor:
    """One tensor that stays as it is, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    reason: str


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
        "structure": structure_json(layer.spm.structure),
    }


def kept_json(kept: KeptTensor, key: str) -> dict[str, Any]:
    """Return a kept tensor's entry. key: what it is stored under; said only where that is not its name."""
    return {**asdict(kept), **({} if key == kept.name else {"key": key})}


def read_layer(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FittedLayer:
    """Return the layer of an entry, whose arrays are among `tensors`.

    Raises LookupError, TypeError, ValueError, ArithmeticError or AttributeError for what is no such entry.
    """
    name = entry["names"][0]
    stem = str(entry.get("stem", usual_stem(name)))
    structure = read_structure(entry["structure"], name, stem, tensors)
    numbers = []
    for i, shapes in enumerate(structure.shapes()):
        named = {}
        for array, shape in shapes.items():
            key = f"{stem}.{i}.{array}"
            if tuple(tensors[key].shape) != shape:
                raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}, not {shape}")
            named[array] = tensors[key]
        numbers.append(named)
    out_features, in_features = entry["shape"]
    if (out_features, in_features) != (structure.out_features, structure.in_features):
        raise ValueError(f"{name}: structure and shape differ")
    shift = tensors.get(f"{stem}.shift")
    if shift is not None and tuple(shift.shape) != (out_features,):
        raise ValueError(f"{stem}.shift has shape {tuple(shift.shape)}, not {(out_features,)}")
    return FittedLayer(
        names=tuple(str(alias) for alias in entry["names"]),
        shape=(out_features, in_features),
        dtype=str(entry["dtype"]),
        sha256=str(entry["sha256"]),
        error=float(entry["error"]),
        svd_error=float(entry["svd_error"]),
        steps=int(entry["steps"]),
        restarts=int(entry["restarts"]),
        start=str(entry["start"]),
        spm=SPM(structure, numbers),
        output_error=_optional(entry.get("output_error")),
        svd_output_error=_optional(entry.get("svd_output_error")),
        shift=shift,
    )


def read_kept(entry: Mapping[str, Any], tensor: Tensor) -> KeptTensor:
    """Return the kept tensor of an entry. Raises as `read_layer`, also where the shapes differ."""
    kept = KeptTensor(
        str(entry["name"]), tuple(entry["shape"]), str(entry["dtype"]), int(entry["bytes"]), str(entry["reason"])
    )
    if tuple(tensor.shape) != kept.shape:
        raise ValueError(f"{kept.name} has shape {tuple(tensor.shape)}, not {kept.shape}")
    return kept


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)
