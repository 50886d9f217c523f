"""From a model to the file that is shipped: candidates, plan, export, and what it came to.

1. The data is split: to fit to, to train on, to judge by.
2. A plan is made (`planner.py`), its layers are fitted, and the file is written and verified.
3. Before that it is trained, if there is time for it.
4. It is measured beside float32, int8 and int4 of the same model (`frontier.py`). Where one of these is better in
   everything, that one is written.
5. A file that is larger than was thought, because of its nodes, is planned again for so much less; one that agrees less
   well, because of its activations in 8 bits, is written with float32 activations, then planned for so much more.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from spm_compress.checkpoint.artifact import SUFFIX, Artifact, FittedLayer, write_artifact
from spm_compress.checkpoint.files import make_folder, own_name, sha256_of, write_whole
from spm_compress.checkpoint.onnx_source import open_graph
from spm_compress.checkpoint.source import Source, key_of
from spm_compress.compress.cache import FitCache
from spm_compress.compress.fitter import Fitter
from spm_compress.compress.model import artifact_of
from spm_compress.compress.progress import Progress, Silent
from spm_compress.compress.weights import Weights
from spm_compress.distill.settings import OnReport
from spm_compress.errors import UsageError
from spm_compress.export.choice import rows_of_layers
from spm_compress.export.files import Exported, export_onnx
from spm_compress.export.probe import open_probe
from spm_compress.export.saving import size_of
from spm_compress.export.settings import ExportSettings
from spm_compress.export.trials import Known
from spm_compress.export.verification import run, session
from spm_compress.pipeline.baselines import write_baselines
from spm_compress.pipeline.candidates import (
    Candidate,
    PlanSettings,
    fitted,
    selected_jobs,
    weights_with_candidates,
)
from spm_compress.pipeline.frontier import FrontierSettings, measure_frontier
from spm_compress.pipeline.harm import measure_harms
from spm_compress.pipeline.held_out import Held, held, split
from spm_compress.pipeline.layer_times import LayerTimes
from spm_compress.pipeline.planner import Limits, Plan, Planner
from spm_compress.pipeline.recovery import recovered
from spm_compress.pipeline.standing import Contender, Frontier, Standing
from spm_compress.pipeline.targets import Targets

__all__ = ["Compression", "compress"]

# Bytes of the nodes and names of a layer in few bits, until a file says how many they are.
_NODES = 1500
_OURS = "ours"
# Seconds that a file is timed for at each size: two for six files are as long as the plan.
_TIMED = 1.0
# Bits a weight from which on structured forms are tried: above, dense maps have less error (docs/few-bits.md).
_LEAST_BITS = 1.3
# Plans that learn from what a file really takes. Of a model of megabytes the first one does.
_CORRECTIONS = 6


@dataclass(frozen=True)
class Compression:
    """What became of a model.

    tried: the plans that were tried on the way; float32_bytes: of the original as ONNX; file: None of a dry run;
    agreement: of the file with the original, on held-out data; frontier: the file, as "ours", beside its rivals;
    instead: the rival that was written in its place, as it dominates it; missed: what was asked for and not reached, a
    line each.
    """

    plan: Plan
    tried: tuple[Plan, ...]
    float32_bytes: int
    kept: Mapping[str, str]
    artifact: Artifact | None = None
    file: Exported | None = None
    agreement: float | None = None
    frontier: Frontier | None = None
    instead: Standing | None = None
    missed: tuple[str, ...] = field(default=())


def compress(
    source: Source,
    output: Path,
    targets: Targets,
    data: Path,
    *,
    settings: PlanSettings | None = None,
    export: ExportSettings | None = None,
    recover_seconds: float = 0.0,
    cache: Path = Path(".spm-compress"),
    dry_run: bool = False,
    progress: Progress | None = None,
    watch: OnReport | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Compression:
    """Write the best ONNX file of a model within the targets, and its artifact beside it.

    data: calibration data, of which a fifth is held out to judge by, 400 samples at most. recover_seconds: to train
    for, through the rounding. cache: folder for fits, harms and moments, so that a second target costs seconds.
    dry_run: plan, and write nothing. progress, watch, say: are told of fits, of training steps, and what is begun.
    A target that is missed is told in `missed`; the best file found is written. Deterministic on one machine, but for
    what is timed on it. Raises what `fit_model` and `export_onnx` raise.
    """
    settings, export, progress = settings or PlanSettings(), export or ExportSettings(), progress or Silent()
    make_folder(cache)
    files = source.hashes()
    parts = split(source, data, cache / "data")
    weights = Weights(source, is_reused=True)
    fitter = Fitter(weights, progress=progress, fits=FitCache(cache))
    say("reading the model and its layers' inputs")
    selected = selected_jobs(weights, settings, parts.fitted, cache)
    if not selected.jobs:
        raise UsageError(f"{source.path}: has no weight that could become smaller; loosen the selection")
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        say("making the float32 graph")
        probe = open_probe(source, {job.sha256: job.shape for job in selected.jobs}, Path(scratch))
        float32 = size_of(probe.float32)
        say(f"finding candidates for {len(selected.jobs)} weights")
        values = sum(math.prod(job.shape) for job in selected.jobs)
        below = 8 * targets.bytes_of(float32) < _LEAST_BITS * values
        weighed = weights_with_candidates(fitter, selected, settings, below_one_bit=below)
        judge = held(source, parts.held, probe.answers)
        say("measuring the harm of each")
        depends_on = {"files": dict(files), "key": key_of(source), "held": sha256_of(parts.held)}
        harms = measure_harms(
            weighed,
            weights,
            lambda replaced: judge.harm(lambda batch: probe.answers(batch, replaced)),
            depends_on,
            cache / f"{own_name(source.path)}.harms.json",
        )
        alone = {each.name: probe.bytes_of(each.job.sha256) or each.job.dense_bytes for each in weighed}

        def fit(candidates: Sequence[Candidate]) -> Iterator[FittedLayer]:
            for _, layer in fitted(fitter, [each.job for each in candidates]):
                yield layer

        planner = Planner(
            weighed,
            harms,
            judge,
            alone,
            None,
            fit,
            probe.answers,
            other_bytes=float32 - sum(alone.values()) + _NODES * len(weighed),
        )
        if targets.latency is not None:
            layers = [next(fit([each.candidates[0]])) for each in weighed]
            known = Known(judge.batches[0])
            rows = rows_of_layers(open_graph(probe.float32), layers, export, Path(scratch), known)
            planner.times = LayerTimes(rows, export, lambda job: next(fitter.fit([job])))
        limits = Limits(targets.bytes_of(float32), targets.latency or math.inf, targets.agreement or 0.0)
        say("planning")
        plan, tried = planner.plan(limits)
        found = Compression(plan, tuple(tried), float32, selected.kept)
        if dry_run:
            return found
        files_of_plans = _Files(planner, limits, source, files, output, export, say)
        within = files_of_plans.within(found, targets)
        assert within.artifact is not None
        if recover_seconds and within.artifact.layers:
            say("training")
            beside = output.parent
            trained = recovered(
                within.artifact, source, parts.trained, recover_seconds, cache=cache, beside=beside, watch=watch
            )
            within = files_of_plans.of(within, trained)
        within = files_of_plans.beside_rivals(within, probe.float32, Path(scratch))
        assert within.artifact is not None
        write_artifact(within.artifact, output.with_name(f"{output.stem}{SUFFIX}"))
        return replace(within, missed=tuple(_missed(within, targets)))


@dataclass
class _Files:
    """Writes files of plans."""

    planner: Planner
    limits: Limits
    source: Source
    digests: Mapping[str, str]
    output: Path
    export: ExportSettings
    say: Callable[[str], None]

    def within(self, found: Compression, targets: Targets) -> Compression:
        """Write the file of a plan, and others of plans that learn from it, until one is within the limits.

        Where none is, the one that misses least stands there at the end.
        """
        limits, written = self.limits, []
        for _ in range(_CORRECTIONS):
            written.append(found := self.of(found, self._artifact(found, targets)))
            assert found.file is not None and found.agreement is not None
            over, short = found.file.bytes - limits.bytes, self.limits.agreement - found.agreement
            if over > 0:
                self.planner.other_bytes += found.file.bytes - found.plan.bytes
            elif short > 0:
                limits = replace(limits, agreement=min(1.0, limits.agreement + short))
            else:
                return found
            plan, tried = self.planner.plan(limits)
            if plan.chosen == found.plan.chosen:
                break
            found = replace(found, plan=plan, tried=(*found.tried, *tried))
        best = min(written, key=self._missed)
        if best is not written[-1] and best.artifact is not None:
            best = self.of(best, best.artifact)
        return best

    def beside_rivals(self, found: Compression, float32: Path, scratch: Path) -> Compression:
        """Measure the file beside the original and its rivals; put one that is better in all in its place."""
        self.say("measuring it beside int8 and int4")
        rivals, left_out = write_baselines(float32, scratch)
        files = [Contender("float32", float32, "original"), *rivals, Contender(_OURS, self.output, "ours")]
        judge = self.planner.held
        settings = FrontierSettings(
            provider=self.export.provider,
            threads=self.export.threads,
            batches=self.export.batches,
            sequences=(self.export.sequence,),
            seconds=_TIMED,
            loss=judge.compare.loss,
        )
        frontier = measure_frontier(files, judge.batches, settings, left_out=left_out)
        better = frontier.dominating_baseline()
        if better is not None:
            with write_whole(self.output) as temporary:
                shutil.copyfile(next(each.path for each in rivals if each.name == better.name), temporary)
        return replace(found, frontier=frontier, instead=better)

    def _missed(self, found: Compression) -> tuple[float, float]:
        assert found.file is not None and found.agreement is not None
        return max(0.0, found.file.bytes - self.limits.bytes), max(0.0, self.limits.agreement - found.agreement)

    def of(self, found: Compression, artifact: Artifact) -> Compression:
        """Write the file of an artifact, with activations in 8 bits where that is fast and agrees as asked."""
        self.say("writing and verifying the file")
        file = export_onnx(artifact, self.output, source=self.source, settings=self.export)
        agreement = _agreement(file, self.planner.held, self.export)
        if agreement < self.limits.agreement and self.export.rounds_activations:
            exact = replace(self.export, rounds_activations=False)
            file = export_onnx(artifact, self.output, source=self.source, settings=exact)
            agreement = _agreement(file, self.planner.held, exact)
        return replace(found, artifact=artifact, file=file, agreement=agreement)

    def _artifact(self, found: Compression, targets: Targets) -> Artifact:
        left = [each for each in self.planner.weights if found.plan.chosen[each.name] is None]
        reasons = {**found.kept, **{name: "left alone by the plan" for each in left for name in each.job.names}}
        layers = self.planner.layers(found.plan)
        return artifact_of(self.source, self.digests, _said(found.plan, targets), layers, reasons, self.output.parent)


def _agreement(file: Exported, judge: Held, export: ExportSettings) -> float:
    runtime = session(file.path, export.threads, export.provider)
    names = [each.name for each in runtime.get_inputs()]
    return judge.agreement(lambda batch: run(runtime, {name: batch[name] for name in names}))


def _missed(found: Compression, targets: Targets) -> Iterator[str]:
    assert found.frontier is not None
    most = targets.bytes_of(found.float32_bytes)
    reached = found.instead or next(each for each in found.frontier.standings if each.name == _OURS)
    if reached.bytes > most:
        yield f"`budget` {most:,.0f} bytes: missed by {reached.bytes - most:,.0f}"
    if targets.agreement is not None and reached.agreement < targets.agreement:
        yield f"`agreement` {targets.agreement:g}: missed by {targets.agreement - reached.agreement:.4f}"
    if targets.latency is not None and reached.seconds[0] > targets.latency:
        yield f"`latency` {1e3 * targets.latency:g} ms: missed by {1e3 * (reached.seconds[0] - targets.latency):.2f} ms"


def _said(plan: Plan, targets: Targets) -> dict[str, object]:
    return {
        "plan": {name: None if each is None else each.text for name, each in plan.chosen.items()},
        "targets": {"budget": targets.bytes, "latency": targets.latency, "agreement": targets.agreement},
    }
