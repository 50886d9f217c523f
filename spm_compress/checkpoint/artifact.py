"""The artifact `NAME.spm.safetensors`: SPM numbers, tensors left dense, and a manifest that explains them.

One safetensors file. Its metadata has one entry, `spm_compress`, a JSON manifest (version 4; 1 to 3 are read too):
`source` (path, files and their SHA-256), `settings`, `versions`, `layers`, `kept` and `recovery`. A fitted weight W has
its numbers under `W.spm.<chain>.<array>` (a low-rank companion counts as one more chain), orders that follow no
formula under `W.spm.<chain>.order.<group>` and what its bias is to be raised by under `W.spm.shift`; a kept
tensor has its own name.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from spm_compress.checkpoint.files import write_tensors
from spm_compress.errors import ArtifactError
from spm_compress.operator.pairing import Affine, Group, Order, Shuffle, Table
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Chain, Mixer, Structure

__all__ = [
    "MANIFEST_VERSION",
    "SUFFIX",
    "Artifact",
    "FittedLayer",
    "KeptTensor",
    "find_artifact",
    "read_artifact",
    "write_artifact",
]

# 2: orders can be shuffles; 3: companions, shifts and errors of outputs; 4: what a recovery changed
MANIFEST_VERSION = 4
SUFFIX = ".spm.safetensors"
_KEY = "spm_compress"


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
        """Bytes of everything stored for the layer: mixers, diagonals, companion, index tables and shift."""
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


@dataclass(frozen=True)
class Artifact:
    """A compressed model: fitted layers, kept tensors with their values, and where it came from.

    source: {"path", "files"}; settings and versions as in the manifest; tensors: the kept values.
    recovery: how the model was trained after the fit, if it was; its "retrained" names the kept tensors that are no
    longer the source's.
    """

    source: Mapping[str, Any]
    settings: Mapping[str, Any]
    versions: Mapping[str, str]
    layers: tuple[FittedLayer, ...]
    kept: tuple[KeptTensor, ...]
    tensors: Mapping[str, Tensor]
    recovery: Mapping[str, Any] | None = None

    @property
    def retrained(self) -> dict[str, Tensor]:
        """Kept tensors that a recovery changed, by name."""
        return {name: self.tensors[name] for name in (self.recovery or {}).get("retrained", ())}


def write_artifact(artifact: Artifact, path: Path) -> None:
    """Write the artifact; the same artifact gives the same bytes. Raises SpmError if it cannot be written."""
    tensors = {kept.name: artifact.tensors[kept.name].contiguous() for kept in artifact.kept}
    for layer in artifact.layers:
        for i, named in enumerate(layer.spm.numbers):
            tensors.update({f"{layer.name}.spm.{i}.{name}": array.contiguous() for name, array in named.items()})
        for i, g in layer.spm.structure.tables:
            order = layer.spm.structure.chains[i].groups[g].order.indices(0)
            tensors[f"{layer.name}.spm.{i}.order.{g}"] = order.to(torch.int32)
        if layer.shift is not None:
            tensors[f"{layer.name}.spm.shift"] = layer.shift.contiguous()
    manifest = {
        "version": MANIFEST_VERSION,
        "versions": artifact.versions,
        "source": artifact.source,
        "settings": artifact.settings,
        "layers": [_layer_json(layer) for layer in artifact.layers],
        "kept": [asdict(kept) for kept in artifact.kept],
        "recovery": artifact.recovery,
    }
    write_tensors(tensors, path, {_KEY: json.dumps(manifest)})


def read_artifact(path: Path) -> Artifact:
    """Read an artifact and check that it is whole.

    Raises ArtifactError for a foreign or damaged file and for a manifest of a later version.
    """
    if not path.is_file():
        raise ArtifactError(f"{path}: no such artifact; make one with: spm-compress fit MODEL")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ArtifactError(f"{path}: is not a whole safetensors file ({error}); run fit again") from error
    if _KEY not in metadata:
        raise ArtifactError(f"{path}: is a safetensors file but not an spm-compress artifact; run fit on it first")
    try:
        manifest = json.loads(metadata[_KEY])
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path}: its manifest is damaged ({error}); run fit again") from error
    if not isinstance(version, int) or version > MANIFEST_VERSION:
        raise ArtifactError(
            f"{path}: manifest version {version} is newer than this program reads (1 to {MANIFEST_VERSION}); "
            "upgrade spm-compress"
        )
    try:
        found = Artifact(
            source=dict(manifest["source"]),
            settings=dict(manifest["settings"]),
            versions=dict(manifest["versions"]),
            layers=tuple(_read_layer(entry, tensors) for entry in manifest["layers"]),
            kept=(kept := tuple(_read_kept(entry, tensors) for entry in manifest["kept"])),
            tensors={entry.name: tensors[entry.name] for entry in kept},
            recovery=None if manifest.get("recovery") is None else dict(manifest["recovery"]),
        )
        found.retrained  # noqa: B018 (names that are not there are damage)
        return found
    except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise ArtifactError(f"{path}: its manifest is damaged ({error!r}); run fit again") from error


def find_artifact(folder: Path) -> Path:
    """Return the one artifact in a folder. Raises ArtifactError, listing them, if there is none or several."""
    found = sorted(folder.glob(f"*{SUFFIX}"))
    if len(found) == 1:
        return found[0]
    if not found:
        raise ArtifactError(f"{folder}: holds no *{SUFFIX}; make one with: spm-compress fit MODEL")
    names = ", ".join(path.name for path in found)
    raise ArtifactError(f"{folder}: holds several artifacts ({names}); name the one that is meant")


def _layer_json(layer: FittedLayer) -> dict[str, Any]:
    return {
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
        "structure": _structure_json(layer.spm.structure),
    }


def _read_layer(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> FittedLayer:
    name = entry["names"][0]
    structure = _read_structure(entry["structure"], name, tensors)
    numbers = []
    for i, shapes in enumerate(structure.shapes()):
        named = {}
        for array, shape in shapes.items():
            key = f"{name}.spm.{i}.{array}"
            if tuple(tensors[key].shape) != shape:
                raise ValueError(f"{key} has shape {tuple(tensors[key].shape)}, not {shape}")
            named[array] = tensors[key]
        numbers.append(named)
    out_features, in_features = entry["shape"]
    if (out_features, in_features) != (structure.out_features, structure.in_features):
        raise ValueError(f"{name}: structure and shape differ")
    shift = tensors.get(f"{name}.spm.shift")
    if shift is not None and tuple(shift.shape) != (out_features,):
        raise ValueError(f"{name}.spm.shift has shape {tuple(shift.shape)}, not {(out_features,)}")
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


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _read_kept(entry: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> KeptTensor:
    kept = KeptTensor(
        str(entry["name"]), tuple(entry["shape"]), str(entry["dtype"]), int(entry["bytes"]), str(entry["reason"])
    )
    if tuple(tensors[kept.name].shape) != kept.shape:
        raise ValueError(f"{kept.name} has shape {tuple(tensors[kept.name].shape)}, not {kept.shape}")
    return kept


def _structure_json(structure: Structure) -> dict[str, Any]:
    return {
        "mixer": structure.mixer.value,
        "in_features": structure.in_features,
        "out_features": structure.out_features,
        "rank": structure.rank,
        "chains": [
            {
                "width": chain.width,
                "diagonals": chain.diagonals,
                "groups": [
                    {
                        "order": _order_json(group.order),
                        "stages": group.stages,
                        "low": group.low,
                        "descending": group.descending,
                    }
                    for group in chain.groups
                ],
            }
            for chain in structure.chains
        ],
    }


def _order_json(order: Order) -> Any:
    match order:
        case Affine():
            return [order.multiplier, order.offset]
        case Shuffle():
            return {"shuffle": order.rows}
        case Table():
            return "table"


def _read_structure(entry: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor]) -> Structure:
    chains = []
    for i, chain in enumerate(entry["chains"]):
        width = int(chain["width"])
        if width < 1:
            raise ValueError(f"{name}: a chain of width {width}")
        groups = tuple(
            _read_group(group, width, tensors.get(f"{name}.spm.{i}.order.{g}"))
            for g, group in enumerate(chain["groups"])
        )
        diagonals = tuple(int(at) for at in chain["diagonals"])
        if not any(group.stages for group in groups):  # with one, the file holds numbers for every feature of the width
            raise ValueError(f"{name}: a chain without stages")
        if list(diagonals) != sorted(set(diagonals) & set(range(len(groups) + 1))):
            raise ValueError(f"{name}: a diagonal that stands at no boundary")
        chains.append(Chain(width, groups, diagonals))
    into, out, rank = int(entry["in_features"]), int(entry["out_features"]), int(entry.get("rank", 0))
    if not 0 <= rank <= min(into, out) or not (chains or rank):
        raise ValueError(f"{name}: a companion of rank {rank} beside {len(chains)} chains")
    return Structure(Mixer(entry["mixer"]), into, out, tuple(chains), rank)


def _read_group(entry: Mapping[str, Any], width: int, table: Tensor | None) -> Group:
    stages, low = int(entry["stages"]), int(entry["low"])
    # Bounds before any power of two is taken of a number that a stranger may have written.
    if not 0 <= stages <= width.bit_length() or not 1 <= low <= width or low & (low - 1):
        raise ValueError(f"a group of {stages} stages from stride {low} at width {width}")
    return Group(_read_order(entry["order"], width, table), stages, low, bool(entry["descending"]))


def _read_order(entry: Any, width: int, table: Tensor | None) -> Order:
    if entry == "table":
        features = tuple(table.tolist()) if table is not None else ()
        if sorted(features) != list(range(width)):
            raise ValueError("an order is not a permutation")
        return Table(features)
    if isinstance(entry, dict):
        rows = int(entry["shuffle"])
        if rows < 1 or width % rows:
            raise ValueError(f"a shuffle of {width} features in {rows} rows")
        return Shuffle(rows)
    multiplier, offset = (int(number) for number in entry)
    # In range before any arithmetic with tensors, whose integers have 64 bits.
    if not 0 < multiplier <= width or not 0 <= offset < width or math.gcd(multiplier, width) != 1:
        raise ValueError(f"order ({multiplier}, {offset}) is not a permutation of {width} features")
    return Affine(multiplier, offset)
