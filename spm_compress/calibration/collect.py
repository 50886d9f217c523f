"""One pass over the data, and what was found kept for the next run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from spm_compress.cache_key import cache_key
from spm_compress.calibration.moments import Moments, PairedMoments, Sums
from spm_compress.calibration.runner import Runner, open_runner
from spm_compress.checkpoint.files import make_folder, sha256_of, write_tensors
from spm_compress.checkpoint.source import Source, key_of
from spm_compress.errors import SourceError

__all__ = ["collect", "load_or_collect", "moments_key", "paired_moments"]

_FORMAT = 1
_KEY = "spm_compress_calibration"

OnBatch = Callable[[int, int], None]


def collect(runner: Runner, names: Sequence[str], watch: OnBatch | None = None) -> dict[str, Moments]:
    """Return name -> moments of what each weight is multiplied with; a name that cannot be watched is missing.

    Names of one input share what was found. watch: told the batches done, and how many there are.
    Raises SourceError where the inputs of a layer are not finite.
    """
    groups = runner.order(names)
    sums = [Sums() for _ in groups]
    for i, batch in enumerate(runner.batches):
        inputs = runner.inputs([group[0] for group in groups], batch)
        for group, each in zip(groups, sums, strict=True):
            for rows in inputs.get(group[0], ()):
                each.add(rows, rows)
        if watch:
            watch(i + 1, len(runner.batches))
    found: dict[str, Moments] = {}
    for group, each in zip(groups, sums, strict=True):
        if each.rows:
            moments = _finite(each.moments(), group)
            found.update(dict.fromkeys(group, moments))
    return found


def paired_moments(original: Runner, now: Runner, names: Sequence[str]) -> dict[str, PairedMoments]:
    """Return name -> moments of the inputs of both, run on the same data batch by batch.

    Raises SourceError where the inputs of a layer are not finite.
    """
    own: dict[str, Sums] = {name: Sums() for name in names}
    first: dict[str, Sums] = {name: Sums() for name in names}
    cross: dict[str, Sums] = {name: Sums() for name in names}
    for batch in original.batches:
        before, after = original.inputs(names, batch), now.inputs(names, batch)
        for name in names:
            for a, b in zip(before.get(name, ()), after.get(name, ()), strict=True):
                own[name].add(b, b)
                first[name].add(a, a)
                cross[name].add(a, b)
    return {
        name: PairedMoments(
            _finite(own[name].moments(), (name,)),
            cross[name].means()[0],
            first[name].covariance(),
            cross[name].covariance(),
        )
        for name in names
        if own[name].rows
    }


def load_or_collect(
    source: Source, data: Path, names: Sequence[str], cache: Path, watch: OnBatch | None = None
) -> dict[str, Moments]:
    """Return what `collect` finds, from the file `cache` where it has it of this model, this data and these names.

    Else the file is written anew. Raises what `open_runner`, `collect` and `write_tensors` raise.
    """
    if not data.is_file():
        open_runner(source, data)  # says what is wrong
    fingerprint = moments_key(source, data)
    known = _load(cache, fingerprint, names)
    if known is not None:
        return known
    found = collect(open_runner(source, data), names, watch)
    _save(cache, fingerprint, names, found)
    return found


def moments_key(source: Source, data: Path) -> str:
    """Return the key of all that the moments of a model's inputs depend on."""
    return cache_key(format=_FORMAT, files=source.hashes(), key=key_of(source), data=sha256_of(data))


def _save(cache: Path, fingerprint: str, names: Sequence[str], found: Mapping[str, Moments]) -> None:
    tensors: dict[str, Tensor] = {}
    owners: dict[int, str] = {}
    for name, moments in found.items():
        if owners.setdefault(id(moments), name) == name:
            tensors[f"{name}.mean"], tensors[f"{name}.covariance"] = moments.mean, moments.covariance
    manifest = {
        "fingerprint": fingerprint,
        "asked": sorted(names),
        "owners": {name: owners[id(moments)] for name, moments in sorted(found.items())},
        "rows": {name: moments.rows for name, moments in sorted(found.items())},
    }
    make_folder(cache.parent)
    write_tensors(tensors, cache, {_KEY: json.dumps(manifest)})


def _load(cache: Path, fingerprint: str, names: Sequence[str]) -> dict[str, Moments] | None:
    """Return the moments of a file that was made for this fingerprint and these names, else None."""
    try:
        with safe_open(cache, framework="pt") as file:
            manifest = json.loads((file.metadata() or {})[_KEY])
            if manifest["fingerprint"] != fingerprint or not set(names) <= set(manifest["asked"]):
                return None
            made: dict[str, Moments] = {}
            for name, owner in manifest["owners"].items():
                if owner not in made:
                    mean, covariance = file.get_tensor(f"{owner}.mean"), file.get_tensor(f"{owner}.covariance")
                    made[owner] = Moments(int(manifest["rows"][name]), mean, covariance)
            return {name: made[owner] for name, owner in manifest["owners"].items() if name in set(names)}
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError):
        return None  # missing, foreign or damaged: collected again


def _finite(moments: Moments, names: Sequence[str]) -> Moments:
    if bool(moments.mean.isfinite().all()) and bool(moments.covariance.isfinite().all()):
        return moments
    raise SourceError(f"{names[0]}: the model's activations before this weight are NaN or infinite on this data")
