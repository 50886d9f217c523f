"""What every candidate takes in a run: kinds of layers timed once in real sessions, as an export does it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.codecs import Grid
from spm_compress.compress.job import Job
from spm_compress.export.choice import plans
from spm_compress.export.settings import ExportSettings
from spm_compress.forms.dense import Dense
from spm_compress.forms.lowering import Dense as AsMatrix
from spm_compress.pipeline.candidates import Candidate, Weight

__all__ = ["LayerTimes"]


class LayerTimes:
    """Seconds that layers take in a run of the first of the batches.

    rows: weight -> rows that reach it at each batch; none of one that is looked up, which takes no time worth counting.
    """

    def __init__(
        self, rows: Mapping[str, tuple[int, ...]], settings: ExportSettings, fit: Callable[[Job], FittedLayer]
    ) -> None:
        self._rows, self._settings, self._fit = rows, settings, fit
        self._known: dict[object, float] = {}

    def of(self, weight: Weight, candidate: Candidate | None) -> float:
        """Return the seconds of a candidate in its fastest lowering; of None as a dense float32 product."""
        rows = self._rows.get(weight.name)
        dense = next((each for each in weight.candidates if each.kind == Dense.kind), None)
        asked = candidate or dense
        if not rows or asked is None:
            return 0.0
        # What is folded to 8 bits runs as one kernel, whatever its bits are.
        is_folded = asked.kind == Dense.kind and isinstance(asked.job.fit.store, Grid)
        kind = (weight.job.shape, rows, "float32" if candidate is None else "int8" if is_folded else asked.text)
        if kind not in self._known:
            layer = asked.layer or self._fit(asked.job)
            (choice,) = plans([layer], {layer.name: rows}, self._settings)[0]
            times = choice.microseconds
            fastest = times[AsMatrix().name] if candidate is None else min(times.values(), key=lambda each: each[0])
            self._known[kind] = fastest[0] / 1e6
        return self._known[kind]
