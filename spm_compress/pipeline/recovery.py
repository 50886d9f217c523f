"""Training for a given time: how many steps that is, is timed once and kept, so that what is resumed ends the same."""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from spm_compress.cache_key import cache_key
from spm_compress.checkpoint.artifact import Artifact
from spm_compress.checkpoint.files import make_folder, sha256_of, write_whole
from spm_compress.checkpoint.source import Source
from spm_compress.distill.recover import recover
from spm_compress.distill.settings import DistillSettings, OnReport, TrainingReport

__all__ = ["recovered"]

# The first steps are slower than those that follow; the others are timed.
_WARM, _TIMED = 2, 6
# Looks at the held-out data in a training.
_LOOKS = 10
# Without a stage of blocks: of few bits, trained through the rounding, it is the outputs that teach (docs/few-bits.md).
_SETTINGS = DistillSettings(block_share=0.0, longest=64, patience=_LOOKS)


def recovered(
    artifact: Artifact,
    source: Source,
    data: Path,
    seconds: float,
    *,
    cache: Path,
    beside: Path,
    watch: OnReport | None = None,
    seed: int = 0,
) -> Artifact:
    """Return the artifact trained on data for about so many seconds on this machine, at least one step.

    cache: folder where the training is kept until it has ended, the number of its steps for good, and the teacher's
    answers as `recover` keeps them. Interrupted, the same call goes on and ends with the same numbers. Raises what
    `recover` raises.
    """
    numbers = [(layer.sha256, layer.form, dict(layer.stored.tensors)) for layer in artifact.layers]
    digest = cache_key(layers=numbers, data=sha256_of(data), seconds=seconds, seed=seed)[:24]
    folder = cache / "training"
    make_folder(folder)
    kept = folder / f"{digest}.steps.json"
    settings = replace(_SETTINGS, seed=seed)
    steps = _known(kept)
    if steps is None:
        steps = max(1, int(seconds / _seconds_a_step(artifact, source, data, settings, beside)))
        with write_whole(kept) as temporary:
            temporary.write_text(json.dumps({"steps": steps}), encoding="utf-8")
    state = folder / f"{digest}.state"
    wanted = replace(settings, steps=steps, check_every=max(1, steps // _LOOKS), keep_every=max(1, steps // _LOOKS))
    found = recover(artifact, source, data, wanted, beside=beside, watch=watch, state=state, cache=cache).artifact
    state.unlink(missing_ok=True)
    return found


def _seconds_a_step(artifact: Artifact, source: Source, data: Path, settings: DistillSettings, beside: Path) -> float:
    times: list[float] = []

    def watch(report: TrainingReport) -> None:
        times.append(time.perf_counter())

    short = replace(settings, steps=_WARM + _TIMED + 1, check_every=1000)
    recover(artifact, source, data, short, beside=beside, watch=watch)
    return _median_step(times[_WARM:-1])  # the last one looked at the held-out data


def _median_step(times: Sequence[float]) -> float:
    steps = sorted(b - a for a, b in itertools.pairwise(times))
    return steps[len(steps) // 2]


def _known(kept: Path) -> int | None:
    try:
        return int(json.loads(kept.read_text(encoding="utf-8"))["steps"])
    except (OSError, ValueError, LookupError, TypeError):  # missing, damaged or foreign: timed again
        return None
