"""Two artifacts, or two reports, side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spm_compress.checkpoint.artifact import read_artifact
from spm_compress.errors import ArtifactError
from spm_compress.report.results import flat
from spm_compress.report.savings import SCHEMA, stored_text, summarize, to_json

__all__ = ["Difference", "Layer", "Pair", "compare", "difference_json"]

_DIFFERENCE_SCHEMA = "spm-compress/diff/3"


@dataclass(frozen=True)
class Pair:
    """A figure of both; None where one has none."""

    a: float | None
    b: float | None


@dataclass(frozen=True)
class Layer:
    """What one weight became: form in words, stored bytes, bits a weight, relative error (weight, outputs)."""

    form: str
    bytes: int
    bits: float
    error: float
    output_error: float | None


@dataclass(frozen=True)
class Difference:
    """totals: figures of the whole; layers: name -> what it is in both, None where it is not replaced, for those that
    differ; same: how many do not; settings: name -> values in words, for those that differ, None for reports, which
    do not hold them."""

    a: Path
    b: Path
    totals: Mapping[str, Pair]
    layers: Mapping[str, tuple[Layer | None, Layer | None]]
    same: int
    settings: Mapping[str, tuple[str | None, str | None]] | None


def compare(a: Path, b: Path) -> Difference:
    """Compare two artifacts, two reports as JSON, or one of each.

    Raises ArtifactError for a file that is neither.
    """
    (report_a, settings_a), (report_b, settings_b) = _read(a), _read(b)
    totals = {
        "weights replaced": Pair(report_a["fitted"]["layers"], report_b["fitted"]["layers"]),
        "bytes, replaced weights": _pair(report_a, report_b, "fitted", "bytes", "after"),
        "bytes on disk, whole model": _pair(report_a, report_b, "model", "bytes", "after"),
        "bits a weight, replaced weights": _pair(report_a, report_b, "fitted", "bits"),
        "parameters, whole model": _pair(report_a, report_b, "model", "parameters", "after"),
        "mean relative weight error": _pair(report_a, report_b, "fitted", "mean_error"),
        "mean relative error of the outputs": _pair(report_a, report_b, "fitted", "mean_output_error"),
    }
    layers_a, layers_b = _layers(report_a), _layers(report_b)
    names = list(dict.fromkeys([*layers_a, *layers_b]))
    both = {name: (layers_a.get(name), layers_b.get(name)) for name in names}
    differ = {name: pair for name, pair in both.items() if pair[0] != pair[1]}
    settings = None
    if settings_a is not None and settings_b is not None:
        keys = dict.fromkeys([*settings_a, *settings_b])
        found = {key: (settings_a.get(key), settings_b.get(key)) for key in keys}
        settings = {key: pair for key, pair in found.items() if pair[0] != pair[1]}
    return Difference(a, b, totals, differ, len(both) - len(differ), settings)


def difference_json(found: Difference) -> dict[str, Any]:
    """Return the difference as JSON values, with `schema` as its version."""

    def pair(a: Any, b: Any) -> dict[str, Any]:
        return {"a": a, "b": b}

    return {
        "schema": _DIFFERENCE_SCHEMA,
        "a": str(found.a),
        "b": str(found.b),
        "totals": {name: pair(each.a, each.b) for name, each in found.totals.items()},
        "layers": {name: pair(a and asdict(a), b and asdict(b)) for name, (a, b) in found.layers.items()},
        "same_layers": found.same,
        "settings": None if found.settings is None else {name: pair(*each) for name, each in found.settings.items()},
    }


def _read(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str] | None]:
    """Return a report as JSON values, and the settings and versions of an artifact."""
    if path.suffix != ".json":
        artifact = read_artifact(path)
        said = {**artifact.settings, **{f"version of {name}": text for name, text in artifact.versions.items()}}
        return to_json(summarize(artifact, path)), flat(said)
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: cannot be read as JSON ({error}); give an artifact or a report") from error
    if not isinstance(value, dict) or value.get("schema") != SCHEMA:
        raise ArtifactError(f"{path}: is no {SCHEMA}; write one with: `to_json`")
    return value, None


def _layers(report: Mapping[str, Any]) -> dict[str, Layer]:
    return {
        layer["name"]: Layer(
            stored_text(layer["form"]["kind"], layer["form"], layer["codec"], is_table=layer["is_table"]),
            layer["bytes"]["after"],
            layer["bits"],
            layer["error"],
            layer["output_error"],
        )
        for layer in report["layers"]
    }


def _pair(a: Any, b: Any, *keys: str) -> Pair:
    for key in keys:
        a, b = a[key], b[key]
    return Pair(a, b)
