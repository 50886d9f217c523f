"""What distillation gives back on MiniLM, by the layers replaced and the share of their numbers that is kept.

Every piece (layers, share, form) is fitted, judged, distilled and judged again; its result is kept in build/recovery,
and the next run goes on with the pieces that are missing. SVD: a truncated SVD of the same number of numbers, weighted
by the same calibration data, trained in the same way. int8, int4: the dense weights rounded, one scale a row.

usage: recovery.py [--layers all feedforward attention] [--shares 0.03 0.06 0.12 0.25] [--forms spm svd] [--steps 300]
                   [--train spm|all] [--rate 3e-3]
       recovery.py --table                     # what is there so far, as a table, and --picture docs/recovery.svg

A share that 20 stages hold counts a square layer, and others keep less; a larger one counts every layer. The table says
what is kept of all. A training that is stopped goes on from its last state; the seconds stored with a piece, by the
wall clock and of the CPU, are those of its distillation, all such parts together.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from real_models import ROOT, fetched
from recovery_data import Judge, Scores, write_texts
from torch import nn

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, read_artifact, write_artifact
from spm_compress.calibration import collect, open_runner
from spm_compress.checkpoint import Source
from spm_compress.checkpoint.huggingface import load_huggingface
from spm_compress.codecs import FLOAT32
from spm_compress.compress import LayerOverride, load_model
from spm_compress.distill import DistillSettings, Rates, Trained, TrainingReport, distill
from spm_compress.distill.samples import samples
from spm_compress.fitting.objective import regularized
from spm_compress.fitting.truncated_svd import low_rank_factors
from spm_compress.forms import Operator
from spm_compress.forms.form import numbers_of
from spm_compress.forms.low_rank import LowRank
from spm_compress.layers import FormLinear

HOME = ROOT / "build" / "recovery"
LAYERS = {
    "all": ("encoder.*",),
    "feedforward": ("encoder.*.intermediate.*", "encoder.layer.*[0-9].output.*"),
    "attention": ("encoder.*.attention.*",),
}
_MOST_STAGES = 20  # longer chains need more than 200 steps of fitting


def spm(source: Source, layers: str, share: float, data: Path) -> nn.Module:
    """Return the model fitted with 20 stages at most, and beside them the low rank that the rest of the share pays for.

    The fit is kept.
    """
    path = HOME / f"{layers}-{share:g}.spm.safetensors"
    if not path.exists():
        fit = FitSettings(stages=min(_MOST_STAGES, _stages(share)), steps=200)
        low_rank_terms = []
        for name in _names(source, layers):
            m, n = source.tensors()[name].shape
            rest = _count(share, m, n) - fit.numbers(m, n)
            low_rank_terms.append(LayerOverride(name, (("rank", rest // (m + n)),)))
        settings = CompressSettings(fit=fit, include=LAYERS[layers], overrides=tuple(low_rank_terms))
        write_artifact(fit_model(source, settings, beside=HOME, data=data), path)
    return load_model(read_artifact(path), source)


def _count(share: float, m: int, n: int) -> int:
    """Return how many numbers a weight of m x n keeps: where stages alone make the share, as many as they hold."""
    stages = _stages(share)
    if stages <= _MOST_STAGES:
        return FitSettings(stages=stages).numbers(m, n)
    return int(share * m * n)


def _stages(share: float) -> int:
    """A square layer of width 384 keeps (stages + 1) / 384 of its numbers."""
    return max(1, round(384 * share) - 1)


def svd(source: Source, layers: str, share: float, data: Path) -> nn.Module:
    """Return the model with truncated SVDs of as many numbers as the SPM has, weighted and corrected as its fit is."""
    model = load_huggingface(source)
    names = _names(source, layers)
    found = collect(open_runner(source, data), names)
    for name in names:
        weight, moments = source.read(name).float(), found[name]
        m, n = weight.shape
        rank = max(1, _count(share, m, n) // (m + n))
        left, right = low_rank_factors(weight, rank, regularized(moments.covariance, moments.rows))
        # Both factors of one size, so that one learning rate fits them.
        scale = (right.norm() / left.norm()).sqrt()
        arrays = {"left": (left * scale).float(), "right": (right / scale).float()}
        operator = Operator(LowRank(n, m, rank), arrays)
        correction = (weight.double() - left @ right) @ moments.mean.double()
        module = name.removesuffix(".weight")
        linear = model.get_submodule(module)
        assert isinstance(linear, nn.Linear)
        model.set_submodule(module, FormLinear.in_place_of(linear, operator, correction.float()))
    return model


def rounded(source: Source, layers: str, bits: int) -> nn.Module:
    """Return the model with its weights rounded to integers of so many bits, one scale a row."""
    model = load_huggingface(source)
    most = 2 ** (bits - 1) - 1
    with torch.no_grad():
        for name in _names(source, layers):
            weight = model.get_parameter(name)
            scale = weight.abs().amax(1, keepdim=True) / most
            weight.copy_((weight / scale).round().clamp(-most - 1, most) * scale)
    return model


def _names(source: Source, layers: str) -> list[str]:
    from spm_compress.compress.selection import select

    return list(select(source.tensors(), include=LAYERS[layers]).fitted)


def pieces(options: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """Yield layers, share and form of every piece that was asked for."""
    for layers in options.layers:
        for share in options.shares:
            for form in options.forms:
                yield layers, share, form
        for form, share in (("int8", 0.25), ("int4", 0.125)):
            yield layers, share, form


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", nargs="+", choices=list(LAYERS), default=list(LAYERS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.03, 0.06, 0.12, 0.25])
    parser.add_argument("--forms", nargs="+", choices=["spm", "svd"], default=["spm", "svd"])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--train", choices=[each.value for each in Trained], default=Trained.SPM.value)
    parser.add_argument("--rate", default="3e-3")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    HOME.mkdir(parents=True, exist_ok=True)
    name = f"{options.steps}-{options.train}-{options.rate}"
    results = HOME / f"results-{name}.json"
    done: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    if not options.table:
        measure(options, done, results)
    print_table(done, options.steps)
    if options.picture:
        draw(done, options.picture, options.steps)


def measure(options: argparse.Namespace, done: list[dict[str, Any]], results: Path) -> None:
    """Do the pieces that are missing, one after the other."""
    texts, held = write_texts(HOME / "texts.txt")
    few = HOME / "calibration.txt"
    few.write_text("\n".join(texts.read_text(encoding="utf-8").splitlines()[:400]) + "\n", encoding="utf-8")
    source = open_source(fetched("minilm"))
    teacher = load_huggingface(source).eval()
    judge = functools.cache(lambda: Judge(teacher, source.path, held))  # minutes, and not needed to go on
    settings = DistillSettings(
        steps=options.steps,
        rates=Rates.parse(options.rate),
        block_share=0.0,  # as good after as many steps, and each of them is shorter (docs/measurements.md)
        trained=Trained(options.train),
        check_every=max(100, options.steps // 10),
        longest=64,
        patience=100,
        remember=4.0,  # all of them: 2.5 GB
    )
    loader, looked_at = samples(teacher, source, texts, settings)
    for layers, share, form in pieces(options):
        if any((each["layers"], each["share"], each["form"]) == (layers, share, form) for each in done):
            continue
        if form in ("spm", "svd"):
            student = (spm if form == "spm" else svd)(source, layers, share, few)
            kept = _kept(student, teacher)
            name = f"{layers}-{share:g}-{form}"
            state = HOME / f"{results.stem}-{name}.state"
            notes = state.with_suffix(".json")
            if state.exists() and notes.exists():
                found = json.loads(notes.read_text())
                before, spent = Scores(**found["before"]), Spent(found["seconds"], found["cpu_seconds"])
            else:
                before = judge().scores(student)
                spent = Spent()
            watch = functools.partial(note, notes, before, spent, settings.keep_every)
            distill(teacher, student, loader, looked_at, settings, state=state, recipe={"piece": name}, watch=watch)
            spent.stop()
            after = judge().scores(student)
            state.unlink(missing_ok=True)
            notes.unlink(missing_ok=True)
        else:
            kept, spent = share, Spent()
            before = after = judge().scores(rounded(source, layers, int(form.removeprefix("int"))))
        done.append(
            {
                "layers": layers,
                "share": share,
                "kept": kept,
                "form": form,
                "before": asdict(before),
                "after": asdict(after),
                "seconds": spent.seconds,
                "cpu_seconds": spent.cpu_seconds,
            }
        )
        results.write_text(json.dumps(done, indent=2) + "\n")
        print(
            f"{layers}, {share:.0%}, {form}: {before.spearman:.3f} > {after.spearman:.3f} in {spent.seconds:.0f} s, "
            f"{spent.cpu_seconds:.0f} s of CPU",
            flush=True,
        )


@dataclass
class Spent:
    """Seconds of a training, those of the parts before this one included."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    began: tuple[float, float] = field(default_factory=lambda: (time.perf_counter(), time.process_time()))

    def stop(self) -> None:
        """Add what has passed since the last stop."""
        began, self.began = self.began, (time.perf_counter(), time.process_time())
        self.seconds += self.began[0] - began[0]
        self.cpu_seconds += self.began[1] - began[1]


def note(path: Path, before: Scores, spent: Spent, every: int, report: TrainingReport) -> None:
    """Keep beside the state what the next part has to know, whenever the state is written."""
    if report.held_out is not None:
        print(f"  [{report.step}/{report.steps}] loss {report.loss:.4f}, held out {report.held_out:.4f}", flush=True)
    if report.step % every == 0:
        spent.stop()
        path.write_text(
            json.dumps({"before": asdict(before), "seconds": spent.seconds, "cpu_seconds": spent.cpu_seconds})
        )


def _kept(student: nn.Module, teacher: nn.Module) -> float:
    """Return the share of numbers that the replaced layers keep, in the form that is stored."""
    found = {name: each for name, each in student.named_modules() if isinstance(each, FormLinear)}
    stored = sum(numbers_of(each.form.stored(FLOAT32)) for each in found.values())
    return stored / sum(teacher.get_parameter(f"{name}.weight").numel() for name in found)


def print_table(done: list[dict[str, Any]], steps: int) -> None:
    """Print a row a piece: before and after."""
    order = list(LAYERS)
    print(f"\n{steps} steps of 32 sentences, before > after\n")
    print("| layers | kept | form | Spearman | top-1 | cosine | Lee Pearson | spam |")
    print("|---|---|---|---|---|---|---|---|")
    for each in sorted(done, key=lambda each: (order.index(each["layers"]), each["share"], each["form"])):
        before, after = each["before"], each["after"]
        trained = each["form"] in ("spm", "svd")
        cells = [f"{before[key]:.3f} > {after[key]:.3f}" if trained else f"{after[key]:.3f}" for key in after]
        print(f"| {each['layers']} | {each['kept']:.1%} | {each['form']} | {' | '.join(cells)} |")


def draw(done: list[dict[str, Any]], path: Path, steps: int) -> None:
    """Draw the rank correlation by the share kept, a panel for each choice of layers."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot as plt

    mpl.rcParams["svg.hashsalt"] = "recovery"
    kinds = [name for name in LAYERS if any(each["layers"] == name for each in done)]
    figure, axes = plt.subplots(1, len(kinds), figsize=(4 * len(kinds), 3.6), sharey=True, squeeze=False)
    for axis, layers in zip(axes[0], kinds, strict=True):
        for form, colour in (("spm", "#0072b2"), ("svd", "#d55e00")):
            rows = sorted((e for e in done if (e["layers"], e["form"]) == (layers, form)), key=lambda e: e["share"])
            shares = [100 * each["kept"] for each in rows]
            axis.plot(shares, [e["after"]["spearman"] for e in rows], "o-", color=colour, label=f"{form}, distilled")
            axis.plot(shares, [e["before"]["spearman"] for e in rows], "o:", color=colour, label=f"{form}, fitted only")
        for each in done:
            if each["layers"] == layers and each["form"].startswith("int"):
                axis.plot(100 * each["share"], each["after"]["spearman"], "ks", ms=4)
                axis.annotate(
                    each["form"], (100 * each["share"], each["after"]["spearman"]), (4, -10), textcoords="offset points"
                )
        axis.set(title=f"{layers} replaced", xlabel="kept, % of the numbers", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("Spearman with the original's similarities")
    axes[0][-1].legend(loc="lower right", fontsize=8)
    figure.suptitle(f"MiniLM, {steps} steps of 32 sentences")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
