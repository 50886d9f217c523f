"""MiniLM by the bytes of the whole file: planned, then trained through the rounding, and judged as ONNX.

    python benchmarks/budgets.py [--budgets 9MB 7.6MB 6.2MB ...] [--steps 1000]

Every file is planned by `compress` from unlabelled sentences, written, judged as in recovery_data.py on 400 sentences
that neither plan nor training saw; with --steps it is trained, written and judged again. A training that is stopped
goes on from its last state. What is measured is kept in benchmarks/results/budgets_minilm.json, a row a budget and
number of steps.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from bits import OnnxModel
from origin import origin
from real_models import ROOT, fetched
from recovery_data import Judge, write_texts

from spm_compress import export_onnx, open_source, write_artifact
from spm_compress.checkpoint import load_module
from spm_compress.distill import DistillSettings, TrainingReport, recover
from spm_compress.pipeline import Targets, compress, parse_bytes
from spm_compress.pipeline.held_out import split

RESULTS = ROOT / "benchmarks" / "results" / "budgets_minilm.json"
HOME = ROOT / "build" / "budgets"
BUDGETS = ("25MB", "17.5MB", "13.5MB", "11MB", "9MB", "7.6MB", "6.2MB", "5MB")


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--budgets", nargs="+", default=BUDGETS)
    parser.add_argument("--steps", type=int, default=0)
    asked = parser.parse_args(arguments)
    HOME.mkdir(parents=True, exist_ok=True)
    texts, sentences = write_texts(HOME / "texts.txt")
    source = open_source(fetched("minilm"))
    judge = Judge(load_module(source).eval(), source.path, sentences)
    parts = split(source, texts, HOME / "cache" / "data")
    for budget in asked.budgets:
        path = HOME / f"{budget}.onnx"
        began = time.process_time()
        made = compress(source, path, Targets(parse_bytes(budget)), texts, cache=HOME / "cache")
        assert made.file is not None and made.artifact is not None
        row: dict[str, Any] = {"budget": budget, "steps": 0, "megabytes": round(made.file.bytes / 1e6, 2)}
        keep({**row, **scores(judge, path), "cpu_seconds": round(time.process_time() - began)}, arguments)
        if not asked.steps:
            continue
        began, looks = time.process_time(), []

        def watch(report: TrainingReport, looks: list[Any] = looks) -> None:
            if report.held_out is not None:
                looks.append((report.step, round(report.loss, 4), round(report.held_out, 4)))
                print(f"  {looks[-1]}", flush=True)

        every = max(1, asked.steps // 10)
        settings = DistillSettings(
            steps=asked.steps, block_share=0.0, longest=64, check_every=every, keep_every=every, remember=2.0
        )
        state = HOME / f"{budget}.{asked.steps}.state"
        found = recover(made.artifact, source, parts.trained, settings, beside=HOME, watch=watch, state=state)
        cpu = round(time.process_time() - began)
        write_artifact(found.artifact, HOME / f"{budget}.{asked.steps}.spm.safetensors")
        path = HOME / f"{budget}.{asked.steps}.onnx"
        written = export_onnx(found.artifact, path, source=source)
        row = {"budget": budget, "steps": asked.steps, "megabytes": round(written.bytes / 1e6, 2)}
        keep({**row, **scores(judge, path), "cpu_seconds": cpu, "looks": looks}, arguments)


def scores(judge: Judge, path: Any) -> dict[str, float]:
    with torch.no_grad():
        return {name: round(value, 4) for name, value in asdict(judge.scores(OnnxModel(path))).items()}


def keep(row: dict[str, Any], arguments: Sequence[str]) -> None:
    """Put a row in the place of an earlier one of the same budget and steps."""
    print(json.dumps(row), flush=True)
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else []
    others = [each for each in known if (each["budget"], each["steps"]) != (row["budget"], row["steps"])]
    rows = sorted(
        [*others, {**row, **origin(__file__, arguments), "torch": torch.__version__}],
        key=lambda each: (-parse_bytes(each["budget"]), each["steps"]),
    )
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
