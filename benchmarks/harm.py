"""Does the predicted harm of a candidate order candidates as the measured one does? On MiniLM, every weight.

    python benchmarks/harm.py [--samples 400]

Of every weight two candidates are measured for the prediction (`pipeline/harm.py`); here all are, and both are compared
by rank: over all candidates of all weights, and over the weights at one number of bits each. Kept in
benchmarks/results/harm.json.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from origin import origin
from real_models import ROOT, fetched, sentences

from spm_compress import open_source
from spm_compress.codecs import bits_text
from spm_compress.compress.cache import FitCache
from spm_compress.compress.fitter import Fitter
from spm_compress.compress.weights import Weights
from spm_compress.export.probe import open_probe
from spm_compress.pipeline.candidates import PlanSettings, selected_jobs, weights_with_candidates
from spm_compress.pipeline.harm import measure_harms, measured_candidates
from spm_compress.pipeline.held_out import held, split

RESULTS = ROOT / "benchmarks" / "results" / "harm.json"
HOME = ROOT / "build" / "harm"


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400)
    asked = parser.parse_args(arguments)
    HOME.mkdir(parents=True, exist_ok=True)
    data = HOME / "texts.txt"
    data.write_text("\n".join(sentences(asked.samples)) + "\n", encoding="utf-8")
    source = open_source(fetched("minilm"))
    parts = split(source, data, HOME)
    values = Weights(source, is_reused=True)
    settings = PlanSettings()
    selected = selected_jobs(values, settings, parts.fitted, HOME)
    fitter = Fitter(values, fits=FitCache(None))
    weights = weights_with_candidates(fitter, selected, settings, below_one_bit=False)
    with tempfile.TemporaryDirectory() as scratch:
        probe = open_probe(source, {job.sha256: job.shape for job in selected.jobs}, Path(scratch))
        judge = held(source, parts.held, probe.answers)

        def harm(replaced) -> float:  # type: ignore[no-untyped-def]
            return judge.harm(lambda batch: probe.answers(batch, replaced))

        harms = measure_harms(weights, values, harm, {"benchmark": "harm"}, HOME / "harms.json")
        rows = []
        for weight in weights:
            used = {id(each) for each in measured_candidates(weight)}
            for each in weight.candidates:
                found = harm({each.job.sha256: each.replacement(values)})
                bits = bits_text(each.job.fit.store)
                rows.append((weight.name, bits, harms.of(weight, each), found, id(each) in used))
            print(weight.name, flush=True)
    others = [row for row in rows if not row[4]]
    by_bits = {bits: correlation([row for row in rows if row[1] == bits]) for bits in dict.fromkeys(r[1] for r in rows)}
    ratios = sorted(row[2] / row[3] for row in others if row[3] > 0)
    summary = {
        "weights": len(weights),
        "candidates": len(others),
        "spearman": correlation(others),
        "by_bits": by_bits,
        "ratio_of_predicted_to_measured": [
            ratios[len(ratios) // 10],
            ratios[len(ratios) // 2],
            ratios[-len(ratios) // 10],
        ],
        **origin(__file__, arguments),
    }
    RESULTS.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(summary, indent=1))


def correlation(rows: Sequence[tuple[str, str, float, float, bool]]) -> float:
    ranks = [np.argsort(np.argsort([row[i] for row in rows])) for i in (2, 3)]
    return round(float(np.corrcoef(ranks)[0, 1]), 4)


if __name__ == "__main__":
    main(sys.argv[1:])
