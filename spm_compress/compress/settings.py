"""What a compression is asked for: which weights, how each is fitted, and how large all may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from spm_compress.codecs import Codec, Float, Grid, bits_text, parse_bits
from spm_compress.errors import UsageError
from spm_compress.forms.candidates import check_forms
from spm_compress.forms.settings import FitSettings
from spm_compress.forms.spm.structure import Mixer

__all__ = ["CompressSettings", "LayerOverride", "bits_said", "parse_forms", "parse_override", "parse_store"]

_AUTO = "auto"
_KEYS = ("form", "bits", "stages", "mixer", "block", "low-rank", "steps", "seed")


@dataclass(frozen=True)
class LayerOverride:
    """Other fit settings for the weights whose names match a glob; values by the names of FitSettings' fields."""

    pattern: str
    values: tuple[tuple[str, Any], ...]


def parse_override(text: str) -> LayerOverride:
    """Read 'GLOB:stages=20,mixer=rotation'. Raises UsageError for anything else."""
    pattern, colon, rest = text.rpartition(":")
    if not colon or not pattern or not rest:
        raise UsageError(f"`overrides` {text!r}: write it as 'GLOB:stages=20,mixer=rotation'")
    values: list[tuple[str, Any]] = []
    for part in rest.split(","):
        key, _, value = part.partition("=")
        if key not in _KEYS:
            raise UsageError(f"`overrides` {text!r}: {key!r} is none of {', '.join(_KEYS)}")
        try:
            values.append(_value(key, value))
        except ValueError as error:
            raise UsageError(f"`overrides` {text!r}: {value!r} is no value for {key}") from error
        except UsageError as error:
            raise UsageError(f"`overrides` {text!r}: {_unmarked(error)}") from error
    return LayerOverride(pattern, tuple(values))


def parse_forms(text: str) -> tuple[str, ...]:
    """Read 'spm,low-rank'. Raises UsageError for a kind of form that there is not."""
    kinds = tuple(dict.fromkeys(kind.strip().replace("-", "_") for kind in text.split(",")))
    check_forms(kinds)
    return kinds


def parse_store(text: str) -> tuple[Codec, bool]:
    """Return `FitSettings.store` and `fewest` of what `parse_bits` takes, or 'auto'. Raises UsageError as that does."""
    return parse_bits("8" if text == _AUTO else text), text == _AUTO


def bits_said(settings: Mapping[str, Any]) -> str:
    """Return the bits that the settings of an artifact say, as `parse_store` takes them.

    Before version 7 of the manifest they named a codec, before version 6 a dtype, in `store`.
    """
    return str(settings.get("bits", "16" if settings.get("store") in ("float16", "F16") else "32"))


def _value(key: str, value: str) -> tuple[str, Any]:
    if key == "form":
        return "forms", parse_forms(value)
    if key == "bits":
        return "store", parse_bits(value)
    if key == "mixer":
        return key, None if value == "auto" else Mixer(value)
    if key == "low-rank":
        return "rank", None if value == "auto" else _count(value, 0)
    return key, _count(value, 0 if key in ("steps", "seed") else 1)


def _count(value: str, least: int) -> int:
    count = int(value)
    if count < least:
        raise ValueError(value)
    return count


@dataclass(frozen=True)
class CompressSettings:
    """How a model is compressed: the fit, which tensors (see `select`), and what stays dense.

    overrides: other settings for some weights; where several match, the later one wins.
    budget: share of the selected weights' dense bytes that all of them together may take; max_error: relative
    error that each may have. With either of them the number of stages is chosen weight by weight (`compress.plan`).
    formless: globs of weights that get no other form either, and may get bits. dense, table: codec of the dense maps
    and of the lookup tables that stay; None leaves them as they are.
    is_sequential: each layer is fitted to what it gets from those already replaced (`compress.sequential`).
    """

    fit: FitSettings = field(default_factory=FitSettings)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    min_features: int = 32
    overrides: tuple[LayerOverride, ...] = ()
    budget: float | None = None
    max_error: float | None = None
    is_sequential: bool = False
    dense: Codec | None = None
    table: Codec | None = None
    formless: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.budget is not None and self.max_error is not None:
            raise UsageError("`budget` and `max_error`: give one target, the other follows from it")
        if self.is_sequential and self.is_planned:
            raise UsageError(
                "`is_sequential`: sizes are planned for all layers at once; give `stages` instead of a target"
            )
        if self.budget is not None and not 0 < self.budget < 1:
            raise UsageError(f"`budget` {self.budget}: the share of the dense bytes lies between 0 and 1")
        if self.max_error is not None and not 0 < self.max_error < 1:
            raise UsageError(f"`max_error` {self.max_error}: a relative error lies between 0 and 1")

    @property
    def is_planned(self) -> bool:
        """Whether the number of stages is chosen weight by weight."""
        return self.budget is not None or self.max_error is not None

    def override_of(self, name: str) -> Mapping[str, Any]:
        """Return the fields of FitSettings that are overridden for a weight."""
        values: dict[str, Any] = {}
        for override in self.overrides:
            if fnmatchcase(name, override.pattern):
                values.update(override.values)
        return values

    def fit_of(self, name: str) -> FitSettings:
        """Return how a weight is fitted."""
        values = dict(self.override_of(name))
        if "store" in values:  # said of this weight, so no others are tried
            values["fewest"] = False
        try:
            return replace(self.fit, **values)
        except UsageError as error:
            raise UsageError(f"`overrides` of {name}: {_unmarked(error)}") from error

    def bits_of(self, name: str, *, is_table: bool) -> Codec | None:
        """Return the codec of a dense map or table that stays, None where it stays as it is."""
        codec: Codec | None = self.override_of(name).get("store", self.table if is_table else self.dense)
        return codec

    def to_json(self) -> dict[str, Any]:
        """Return what the artifact's manifest says of the settings."""
        fit = self.fit
        return {
            "stages": "auto" if self.is_planned else fit.stages,
            "budget": self.budget,
            "max_error": self.max_error,
            "sequential": self.is_sequential,
            "forms": fit.forms,
            "mixer": fit.mixer.value if fit.mixer else "auto",
            "low_rank": "auto" if fit.rank is None else fit.rank,
            "schedule": fit.schedule.value,
            "block": fit.block,
            "steps": fit.steps,
            "learning_rate": fit.learning_rate,
            "seed": fit.seed,
            "include": self.include,
            "exclude": (*self.exclude, *self.formless),
            "min_features": self.min_features,
            "layers": [[each.pattern, {k: _said(v) for k, v in each.values}] for each in self.overrides],
            "bits": _AUTO if fit.fewest else bits_text(fit.store),
            "dense_bits": None if self.dense is None else bits_text(self.dense),
            "table_bits": None if self.table is None else bits_text(self.table),
        }


def _unmarked(error: UsageError) -> str:
    """Return an error of settings without the marks of their fields: in an override they are no options."""
    return str(error).replace("`", "")


def _said(value: Any) -> Any:
    """Return what a manifest says of an overridden value."""
    if isinstance(value, Mixer):
        return value.value
    return bits_text(value) if isinstance(value, Grid | Float) else value
