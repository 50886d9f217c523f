"""Trained matrices that ship inside PyPI packages (examples/fetch_model.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torch import Tensor

from spm_compress import open_source
from spm_compress.calibration import collect, open_runner
from spm_compress.compress.selection import select
from spm_compress.fitting.objective import regularized

__all__ = ["DENSE_WEIGHTS", "covariances", "dense_weights", "fetched"]

ROOT = Path(__file__).resolve().parent.parent
# Which of a model's tensors are its dense weights.
DENSE_WEIGHTS = {
    "minilm": ("encoder.*", "pooler.*"),
    "rxnfp": ("bert.encoder.*", "bert.pooler.*"),
    "rxnmapper": ("albert.*",),
    "ppocr": ("linear_*",),
    "crepe-tiny": ("classifier.weight",),
    "crepe-full": ("classifier.weight",),
}


def fetched(model: str) -> Path:
    script = [sys.executable, str(ROOT / "examples" / "fetch_model.py"), model]
    return Path(subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def covariances(model: str, data: Path) -> dict[str, Tensor]:
    """Return name -> covariance (n, n) of a weight's inputs on calibration data, as a fit takes it."""
    source = open_source(fetched(model))
    found = collect(open_runner(source, data), select(source.tensors(), include=DENSE_WEIGHTS[model]).fitted)
    return {name: regularized(moments.covariance, moments.rows) for name, moments in found.items()}


def dense_weights(model: str) -> dict[str, Tensor]:
    """Return name -> weight (out_features, in_features), float32."""
    source = open_source(fetched(model))
    return {name: source.read(name).float() for name in select(source.tensors(), include=DENSE_WEIGHTS[model]).fitted}
