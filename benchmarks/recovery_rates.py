"""Which learning rates, averages, ends and losses recover most of MiniLM in few bits, after as many steps.

    python benchmarks/recovery_rates.py [--bits 2] [--table 4] [--steps 200] [--form dense|spm] SETTING ...

SETTING: `name=value,...` of DistillSettings and Rates, `-` for the defaults: `dense=5e-4,table=1e-3`, `average=0.99`,
`end=linear`. Every encoder weight in so many bits, one scale a row, the word table in 4; no calibration. Judged as in
recovery_data.py, on 400 sentences that were held out. What was measured is added to
benchmarks/results/recovery_rates.json, as it comes.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

import torch
from origin import origin
from real_models import ROOT, fetched
from recovery_data import Judge, write_texts

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, read_artifact, write_artifact
from spm_compress.checkpoint import Source
from spm_compress.codecs import parse_bits
from spm_compress.distill import DistillSettings, End, Rates, TrainingReport, recover

RESULTS = ROOT / "benchmarks" / "results" / "recovery_rates.json"
HOME = ROOT / "build" / "recovery"


def fitted(source: Source, bits: str, table: str, form: str) -> Path:
    """Return the artifact that the training begins with, made if need be."""
    path = HOME / f"rates-{form}-{bits.replace('/', '_')}-{table.replace('/', '_')}.spm.safetensors"
    if not path.exists():
        if form == "dense":
            settings = CompressSettings(
                FitSettings(), include=("none",), dense=parse_bits(bits), table=parse_bits(table)
            )
        else:
            fit = FitSettings(stages=20, steps=200, store=parse_bits(bits))
            settings = CompressSettings(fit, include=("encoder.*",), table=parse_bits(table))
        write_artifact(fit_model(source, settings, beside=HOME, cache=HOME / "fits"), path)
    return path


def parsed(text: str, base: DistillSettings) -> DistillSettings:
    """Return settings with what a text says."""
    groups = [each.name for each in fields(Rates)]
    rates, others = [], {}
    for name, _, value in (part.partition("=") for part in text.split(",") if part != "-"):
        if name in ("rate", *groups):
            rates.append(value if name == "rate" else f"{name}={value}")
        else:
            others[name] = End(value) if name == "end" else type(getattr(base, name))(float(value))
    return replace(base, rates=Rates.parse(*rates), **others)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="+", metavar="SETTING")
    parser.add_argument("--bits", default="2")
    parser.add_argument("--table", default="4")
    parser.add_argument("--form", choices=["dense", "spm"], default="dense")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--check-every", type=int)
    asked = parser.parse_args(arguments)
    HOME.mkdir(parents=True, exist_ok=True)
    texts, held = write_texts(HOME / "texts.txt")
    source = open_source(fetched("minilm"))
    artifact = read_artifact(fitted(source, asked.bits, asked.table, asked.form))
    base = DistillSettings(
        steps=asked.steps,
        block_share=0.0,
        check_every=asked.check_every or max(25, asked.steps // 10),
        longest=64,
        patience=100,
        remember=4.0,
    )
    judge: Judge | None = None
    for text in asked.settings:
        settings = parsed(text, base)
        began = [0.0, 0.0]
        looked: list[tuple[int, float, float]] = []

        def watch(report: TrainingReport, began: list[float] = began, looked: list[Any] = looked) -> None:
            if report.step == 1:
                began[:] = time.perf_counter(), time.process_time()
            if report.held_out is not None:
                looked.append((report.step, report.loss, report.held_out))
                print(f"  [{report.step}] loss {report.loss:.4f}, held out {report.held_out:.4f}", flush=True)

        state = HOME / f"rates-{asked.form}-{asked.bits}-{asked.steps}-{text.replace('/', '_')}.state"
        found = recover(artifact, source, texts, settings, beside=HOME, watch=watch, state=state)
        seconds, cpu = time.perf_counter() - began[0], time.process_time() - began[1]
        judge = judge or Judge(found.teacher.eval(), source.path, held)
        scores = judge.scores(found.student)
        row = {
            "form": asked.form,
            "bits": asked.bits,
            "table": asked.table,
            "steps": asked.steps,
            "setting": text,
            **{name: round(value, 4) for name, value in asdict(scores).items()},
            "seconds": round(seconds),
            "cpu_seconds": round(cpu),
            "looks": looked,
            **origin(__file__, arguments),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        rows = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps([*rows, row], indent=1) + "\n", encoding="utf-8")
        state.unlink(missing_ok=True)
        print(json.dumps({name: value for name, value in row.items() if name != "looks"}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
