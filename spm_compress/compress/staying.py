"""Dense maps and lookup tables that stay, and whose numbers are stored in fewer bits."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from spm_compress.checkpoint.tensor_info import Role, TensorInfo
from spm_compress.codecs import Codec, bits_text
from spm_compress.compress.job import Job, has_bias
from spm_compress.compress.selection import EXCLUDED, is_lookup
from spm_compress.compress.settings import CompressSettings
from spm_compress.compress.weights import Weights
from spm_compress.errors import UsageError
from spm_compress.forms.dense import Dense
from spm_compress.forms.form import stored_bytes
from spm_compress.forms.settings import FitSettings

__all__ = ["in_bits", "require_blocks", "staying", "without_bits"]

_LISTED = 3


def without_bits(
    infos: Mapping[str, TensorInfo], kept: Mapping[str, str], parts: Mapping[str, str], settings: CompressSettings
) -> dict[str, str]:
    """Return name -> reason for the tensors that stay and cannot be stored in fewer bits.

    kept: name -> reason of all that stay. parts: name -> reason of those that are a part of something else: the scales
    of packed weights are matrices too, and must not lose a digit.
    """
    found = {}
    for name, reason in kept.items():
        info = infos[name]
        if name in parts:
            found[name] = parts[name]
        elif len(info.shape) != 2 or not info.is_floating or info.role in (Role.QUANTIZED, Role.OTHER):
            found[name] = reason
        elif min(info.shape) < settings.min_features:  # a table of two rows saves nothing, and every token meets one
            found[name] = f"narrower than {settings.min_features} features"
        elif any(fnmatchcase(name, pattern) for pattern in settings.exclude):
            found[name] = EXCLUDED
    return found


def staying(
    weights: Weights,
    infos: Mapping[str, TensorInfo],
    kept: Mapping[str, str],
    without: Mapping[str, str],
    settings: CompressSettings,
) -> list[Job]:
    """Return the jobs of the dense maps and lookup tables that stay and are to be stored in fewer bits.

    Equal ones are one, and a table if one of them is; none of them where one is excluded. without: `without_bits`.
    """
    asked = {
        name: settings.bits_of(name, is_table=is_lookup(name, infos[name])) for name in kept if name not in without
    }
    shapes = {infos[name].shape for name, codec in asked.items() if codec is not None}
    groups: dict[tuple[tuple[int, ...], int, str], list[str]] = {}
    for name in kept:
        is_excluded = without.get(name) == EXCLUDED
        if infos[name].shape in shapes and (name in asked or is_excluded):
            digest = weights.digest(name, is_chosen=not is_excluded)
            groups.setdefault((infos[name].shape, infos[name].kernel_dims, digest), []).append(name)
    jobs = []
    for (_, _, sha256), names in groups.items():
        if any(name in without for name in names):
            continue
        first = next((name for name in names if is_lookup(name, infos[name])), names[0])
        out_features, in_features = infos[first].shape
        job = Job(
            tuple(names),
            (out_features, in_features),
            infos[first].dtype,
            settings.fit,
            sha256,
            has_bias=has_bias(weights.source, infos, names),
            is_table=is_lookup(first, infos[first]),
            kernel_dims=infos[first].kernel_dims,
        )
        found = in_bits(job, asked[first])
        jobs += [] if found is None else [found]
    return jobs


def in_bits(job: Job, codec: Codec | None) -> Job | None:
    """Return a job that stays dense, in a codec; None if that is none or saves nothing."""
    if codec is None:
        return None
    out_features, in_features = job.shape
    if stored_bytes(Dense(in_features, out_features), codec) >= job.dense_bytes:
        return None
    return replace(job, fit=FitSettings(forms=(Dense.kind,), store=codec), stays=True)


def require_blocks(path: Path, jobs: Iterable[Job]) -> None:
    """Raise UsageError, naming them, for weights whose rows the blocks that share a scale do not divide."""
    wrong = [job for job in jobs if not job.fit.store.fits(job.shape)]
    if not wrong:
        return
    named = [f"{job.names[0]} ({job.shape[1]} numbers, {bits_text(job.fit.store)})" for job in wrong[:_LISTED]]
    more = f" and {len(wrong) - _LISTED} more" if len(wrong) > _LISTED else ""
    bits = bits_text(wrong[0].fit.store).partition("/")[0]
    raise UsageError(
        f"{path}: the rows of {', '.join(named)}{more} are no whole number of blocks; give such weights a scale a row: "
        f"`overrides` '{wrong[0].names[0]}:bits={bits}'"
    )
