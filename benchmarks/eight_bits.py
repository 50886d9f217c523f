"""What the default of `fit --bits` costs: errors of every layer of six real models in 8 bits beside float32.

    python benchmarks/eight_bits.py [MODEL ...] [--steps N]

MODEL: of examples/fetch_model.py; all unless given. Each weight is fitted once, with 10 and with 20 stages, general
ones and rotations; its numbers are then stored as float32 and as angles of 8 bits, and both are compared with it.
Results are kept in benchmarks/results/eight_bits.json, with those of models that are not asked for.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from origin import origin
from real_models import DENSE_WEIGHTS, ROOT, dense_weights
from torch import Tensor

from spm_compress import FitSettings, fit_matrices
from spm_compress.codecs import FLOAT32, integer
from spm_compress.forms.spm.structure import Mixer
from spm_compress.forms.stored import encoded

RESULTS = ROOT / "benchmarks" / "results" / "eight_bits.json"


def rises(weights: Mapping[str, Tensor], settings: FitSettings) -> dict[str, float]:
    """Return name -> by how much the relative error of a weight grows when its fit is stored in 8 bits."""
    found = {}
    for shape in dict.fromkeys(tuple(weight.shape) for weight in weights.values()):
        alike = {name: weight for name, weight in weights.items() if tuple(weight.shape) == shape}
        fits = fit_matrices(torch.stack(list(alike.values())), settings)
        for (name, weight), fit in zip(alike.items(), fits, strict=True):
            plain, narrow = (encoded(fit.operator, codec, weight) for codec in (FLOAT32, integer(8)))
            if narrow.reason:
                raise SystemExit(f"{name}: {narrow.reason}")
            found[name] = narrow.error - plain.error
    return found


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--steps", type=int, default=100)
    asked = parser.parse_args(arguments)
    known: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for model in asked.models or DENSE_WEIGHTS:
        weights = dense_weights(model)
        rows = []
        for stages in (10, 20):
            for mixer in (Mixer.GENERAL, Mixer.ROTATION):
                found = rises(weights, FitSettings(stages=stages, mixer=mixer, steps=asked.steps))
                worst = max(found, key=lambda name: found[name])
                rows.append(
                    {
                        "stages": stages,
                        "mixer": mixer.value,
                        "median": round(statistics.median(found.values()), 6),
                        "most": round(found[worst], 6),
                        "weight": worst,
                    }
                )
                print(json.dumps({"model": model, **rows[-1]}), flush=True)
        known[model] = {
            **origin(__file__, arguments),
            "weights": len(weights),
            "rows": rows,
        }
        RESULTS.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
