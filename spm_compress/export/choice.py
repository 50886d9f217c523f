"""Which lowering is the fastest for a layer, on this machine, at the batch that is asked for."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from spm_compress.cache_key import cache_key
from spm_compress.checkpoint.artifact import FittedLayer
from spm_compress.checkpoint.files import sha256_of, write_whole
from spm_compress.errors import SpmError
from spm_compress.export.measuring.timing import interleaved
from spm_compress.export.saving import save
from spm_compress.export.settings import ExportSettings, Weights
from spm_compress.export.splicing.layer_model import layer_model
from spm_compress.export.splicing.matches import Digests, matches
from spm_compress.export.trials import SIZES, Known, find_trial
from spm_compress.export.verification import session
from spm_compress.forms.folding import foldable, require_foldable
from spm_compress.forms.lowering import Dense, Int8, Layout, Lowering, NBits, lowerings

__all__ = ["Choice", "asked_for", "layer_key", "model_key", "plans", "processor", "remembered", "rows_of_layers"]

_REPEATS, _SECONDS = 40, 0.15
# Layouts between which activations have to be turned.
_TURNED = (Layout.FEATURE_MAJOR, Layout.BATCH_MAJOR)
# A lowering that is not this much faster than the dense product is not worth the risk that timing is noise.
_MARGIN = 0.97


@dataclass(frozen=True)
class Choice:
    """How a layer is to run and why.

    rows: at which it was timed; microseconds: lowering name -> median of one run at each of the rows.
    """

    layer: str
    lowering: Lowering
    rows: tuple[int, ...]
    microseconds: Mapping[str, tuple[float, ...]]
    reason: str


def rows_of_layers(
    dense: ir.Model,
    layers: Sequence[FittedLayer],
    settings: ExportSettings,
    scratch: Path,
    known: Known | None = None,
    digests: Digests | None = None,
) -> dict[str, tuple[int, ...]]:
    """Return, layer by layer, how many rows reach it when the model is run at each of the batches.

    scratch: a folder for a copy of the model; known: inputs that it can take; digests: of its matrices. A layer inside
    a loop or branch is taken to see the batch.
    """
    tapped = dense.clone()
    asked: dict[str, str] = {}
    features_at: dict[str, int] = {}
    multiplied: dict[str, None] = {}  # a table that is only looked up is none of them
    for match in matches(tapped, layers, digests or Digests()):
        node = match.product.node
        multiplied[match.layer.name] = None
        if node.graph is not tapped.graph or match.layer.name in asked:
            continue
        shape = ir.Node("", "Shape", [node.inputs[0]])
        tapped.graph.insert_before(node, shape)
        output = shape.outputs[0]
        output.name, output.type = f"rows.{len(asked)}", ir.TensorType(ir.DataType.INT64)
        output.shape = ir.Shape([None])
        asked[match.layer.name] = output.name
        features_at[match.layer.name] = 1 if node.op_type == "Conv" else -1
        tapped.graph.outputs.append(output)
    found: dict[str, tuple[int, ...]] = dict.fromkeys(multiplied, ())
    runtime = session(save(tapped, scratch / "tapped.onnx", inside=False), prepack=False)
    for batch in settings.batches:
        shapes: dict[str, np.ndarray] = {}
        if asked:
            inputs = find_trial(runtime, dense, batch, (settings.sequence, *SIZES), known).inputs(dense, batch, 0)
            shapes = dict(zip(asked, runtime.run(list(asked.values()), inputs), strict=True))
        for name in found:
            sizes = list(shapes.get(name, (batch, 1)))
            sizes.pop(features_at.get(name, -1))
            found[name] = (*found[name], max(1, math.prod(int(size) for size in sizes)))
    return found


def plans(
    layers: Sequence[FittedLayer], rows: Mapping[str, tuple[int, ...]], settings: ExportSettings
) -> list[tuple[Choice, ...]]:
    """Return the ways to run a model that are worth timing as a whole: a Choice for each layer.

    Each layer has the lowering that is fastest over its rows, and at none of them slower than dense, if its matrix is
    not too large for that. The first plan takes any; the others keep to one layout, as neighbours that agree save turns
    that a layer by itself cannot see.

    Every kind of layer is timed once, in real sessions; the times are kept for this processor and version of ONNX
    Runtime, so that the same export gives the same file again.
    """
    times = {
        layer.name: remembered(
            layer_key(layer, rows[layer.name], settings),
            functools.partial(_timed, layer, rows[layer.name], settings),
        )
        for layer in layers
        if layer.name in rows
    }
    own = {layer.name: _allowed(layer, settings) for layer in layers}
    asked = {layer.name: asked_for(layer, settings) for layer in layers}
    found: list[tuple[Choice, ...]] = []
    for turned in (_TURNED, *((layout,) for layout in _TURNED)):
        layouts = {*turned, Layout.FEATURES_LAST}
        plan = tuple(
            _chosen(name, own[name], rows[name], measured, layouts, asked[name]) for name, measured in times.items()
        )
        if [choice.lowering for choice in plan] not in [[choice.lowering for choice in other] for other in found]:
            found.append(plan)
    return found


def _allowed(layer: FittedLayer, settings: ExportSettings) -> list[Lowering]:
    found = foldable(layer.form, layer.form.lowerings(layer.stored.codecs))
    if not found:
        require_foldable(layer.name, layer.form, Dense(), 4)
    if settings.weights is Weights.FOLDED or layer.is_table:  # a table is stored once, to be looked up
        found = [each for each in found if not isinstance(each, NBits)]
    return [each for each in found if settings.rounds_activations or not isinstance(each, Int8 | NBits)]


def asked_for(layer: FittedLayer, settings: ExportSettings) -> Lowering | None:
    """Return the lowering that a layer is to have whatever is faster, None where that is to be found out."""
    if settings.weights is Weights.NBITS and NBits() in _allowed(layer, settings):
        return NBits()
    return settings.lowering


def _chosen(
    name: str,
    lowerings: Sequence[Lowering],
    rows: tuple[int, ...],
    times: Mapping[str, Sequence[float]],
    layouts: set[Layout],
    asked: Lowering | None,
) -> Choice:
    microseconds = {each.name: tuple(times[each.name]) for each in lowerings}
    if asked is not None:
        return Choice(name, asked, rows, microseconds, "as asked")
    candidates = [each.name for each in lowerings if each.layout in layouts]
    if Dense().name not in times:
        best = min(candidates, key=lambda candidate: math.prod(times[candidate]))
        lowering = next(each for each in lowerings if each.name == best)
        return Choice(name, lowering, rows, microseconds, "its matrix is too large to be made at load")
    dense = times[Dense().name]

    def ratio(candidate: str) -> float:
        """Geometric mean of the dense time over this one."""
        return math.exp(sum(math.log(d / t) for d, t in zip(dense, times[candidate], strict=True)) / len(dense))

    never_slower = [
        candidate
        for candidate in candidates
        if all(t < _MARGIN * d for t, d in zip(times[candidate], dense, strict=True))
    ]
    best = max(never_slower, key=ratio, default=Dense().name)
    if best == Dense().name:
        closest = max(candidates, key=ratio, default=None)
        reason = "there is no other way" if closest is None else _closest(closest, ratio(closest))
    else:
        reason = f"{ratio(best):.1f}x faster than dense"
    lowering = next(each for each in lowerings if each.name == best)
    return Choice(name, lowering, rows, microseconds, reason)


def _closest(name: str, ratio: float) -> str:
    return f"nothing is faster (closest: {name}, {ratio:.2f}x)"


def _timed(layer: FittedLayer, rows: tuple[int, ...], settings: ExportSettings) -> dict[str, list[float]]:
    sessions = {
        lowering.name: session(
            ir.serde.serialize_model(layer_model(layer, lowering)).SerializeToString(),
            settings.threads,
            settings.provider,
        )
        for lowering in _allowed(layer, settings)
    }
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for count in rows:
        x = np.random.default_rng(0).standard_normal((count, layer.shape[1])).astype(np.float32)
        calls = {name: (lambda runtime=runtime, x=x: runtime.run(None, {"x": x})) for name, runtime in sessions.items()}
        for name, timing in interleaved(calls, repeats=_REPEATS, seconds=_SECONDS).items():
            times[name].append(round(timing.median * 1e6, 1))
    return times


def layer_key(layer: FittedLayer, rows: tuple[int, ...], settings: ExportSettings) -> str:
    """Return the key of all that the times of a layer by itself depend on: its numbers' values are none of it."""
    return _measured_here(
        form=layer.form,
        codecs=[codec.name for codec in layer.stored.codecs.values()],
        rows=rows,
        allowed=[each.name for each in _allowed(layer, settings)],
        threads=settings.threads,
        provider=settings.provider,
    )


def model_key(
    graph: Path, layers: Sequence[FittedLayer], plans: Sequence[Sequence[str]], settings: ExportSettings, known: Known
) -> str:
    """Return the key of all that the times of whole models depend on.

    graph: the dense one, its large tensors beside it; plans: names of lowerings, layer by layer.
    """
    return _measured_here(
        graph=sha256_of(graph),
        layers=[(layer.sha256, layer.form, [codec.name for codec in layer.stored.codecs.values()]) for layer in layers],
        plans=plans,
        settings=settings,
        known=known,
    )


def _measured_here(**depends_on: object) -> str:
    return cache_key(
        onnxruntime=onnxruntime.__version__,
        processor=processor(),
        processors=os.cpu_count(),
        lowerings=[each.name for each in lowerings()],
        **depends_on,
    )


def remembered(key: str, measure: Callable[[], Any]) -> Any:
    """Return what was measured under a key before, or measure it and keep it (JSON values).

    Kept in the user's cache folder; a missing, damaged or read-only file only costs the time to measure again.
    """
    path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spm-compress" / "lowerings.json"
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if key not in known:
        known[key] = measure()
        with contextlib.suppress(OSError, SpmError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with write_whole(path) as temporary:
                temporary.write_text(json.dumps(known, indent=1, sort_keys=True), encoding="utf-8")
    return known[key]


def processor() -> str:
    """Return the name of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
