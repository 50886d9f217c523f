"""ONNX Runtime's own format, which its reduced builds for phones and small devices read.

An .ort file holds the graph as it runs: functions are inlined and constants folded. So blocks and dense layers stand
in it multiplied out, and only `stages` keeps it O(nL).
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import onnxruntime

from spm_compress.checkpoint.files import write_whole_set
from spm_compress.errors import ExportError, UsageError, VerificationError
from spm_compress.export.files import BATCHES
from spm_compress.export.trials import find_trial
from spm_compress.export.verification import TOLERANCE, Agreement, agreement, run, session

__all__ = ["OrtFiles", "check_ort_path", "ort_beside", "write_ort"]

_CONVERTER = "onnxruntime.tools.convert_onnx_models_to_ort"
# Basic optimizations use ONNX operators only and hold for every provider. Higher levels are those of the machine that
# converts: on a CPU they write fused operators that CoreML, NNAPI or XNNPACK cannot take ("Fixed" style), or that
# need an opt-in wherever the file is loaded ("Runtime").
_STYLE, _LEVEL = "Fixed", "basic"
_LEVEL_VARIABLE = "ORT_CONVERT_ONNX_MODELS_TO_ORT_OPTIMIZATION_LEVEL"


@dataclass(frozen=True)
class OrtFiles:
    """A model in ORT format and the operators that a minimal build of ONNX Runtime needs for it.

    bytes: of the model; agreements: with the ONNX model it was made of.
    """

    path: Path
    bytes: int
    config_path: Path
    config_bytes: int
    agreements: tuple[Agreement, ...]


def check_ort_path(path: Path) -> None:
    """Raise UsageError for a name by which ONNX Runtime would not know the format."""
    if path.suffix != ".ort":
        raise UsageError(f"{path}: ONNX Runtime knows its format by the ending .ort; choose a name such as model.ort")


def ort_beside(ort_path: Path, onnx_path: Path, written: Path) -> Path:
    """Return the name in ORT format of one of the files of a model: NAME.encoder.ort for NAME.encoder.onnx."""
    part = written.stem.removeprefix(onnx_path.stem)
    return ort_path.with_name(f"{ort_path.stem}{part}{ort_path.suffix}")


def write_ort(onnx_path: Path, ort_path: Path) -> OrtFiles:
    """Convert an ONNX file to `ort_path`, with NAME.required_operators.config beside it, and compare the two models.

    Both files appear only if the outputs agree. Raises UsageError for names that do not end in .onnx and .ort,
    ExportError if ONNX Runtime cannot convert the model, VerificationError if the two differ.
    """
    check_ort_path(ort_path)
    if onnx_path.suffix != ".onnx":
        raise UsageError(f"{onnx_path}: ONNX Runtime converts files that end in .onnx only; rename it")
    if not onnx_path.is_file():
        raise ExportError(f"{onnx_path}: no such ONNX file")
    config_path = ort_path.with_suffix(".required_operators.config")
    with write_whole_set(ort_path) as folder:
        scratch = folder.resolve() / "scratch"
        scratch.mkdir()
        _convert(onnx_path.resolve(), scratch)
        (made,), (config,) = scratch.glob("*.ort"), scratch.glob("*.config")
        text = config.read_text(encoding="utf-8").replace(str(made), ort_path.name)
        (folder / config_path.name).write_text(text, encoding="utf-8")
        agreements = _verified(onnx_path, made.replace(folder / ort_path.name))
    return OrtFiles(ort_path, ort_path.stat().st_size, config_path, config_path.stat().st_size, agreements)


def _convert(onnx_path: Path, folder: Path) -> None:
    """Run ONNX Runtime's converter in a process of its own: it prints, and takes its level from the environment."""
    done = subprocess.run(
        [sys.executable, "-m", _CONVERTER, "--optimization_style", _STYLE, "--output_dir", folder, onnx_path],
        cwd=folder,  # from where -m would import: nothing of the user's
        env={**os.environ, _LEVEL_VARIABLE: _LEVEL},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ExportError(
            f"{onnx_path}: ONNX Runtime {onnxruntime.__version__} cannot convert it to ORT format ({reason}); "
            "use the ONNX file itself"
        )


def _verified(onnx_path: Path, ort_path: Path) -> tuple[Agreement, ...]:
    # At the same level of optimization both run the same nodes, so that int8 has no other rounding to jump by.
    expected, found = session(onnx_path, level=onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC), session(ort_path)
    model = ir.load(onnx_path)
    trial = find_trial(expected, model, BATCHES[0])
    agreements = []
    for batch in BATCHES:
        inputs = trial.inputs(model, batch, seed=batch)
        agreements.append(agreement(batch, run(found, inputs), run(expected, inputs)))
    worst = max(agreements, key=lambda agreement: agreement.error)
    if not worst.error < TOLERANCE:
        raise VerificationError(
            f"{ort_path.name}: differs from {onnx_path.name} by {worst.error:.1e} at batch {worst.batch} "
            f"(limit {TOLERANCE:.0e}); the file was not kept; please report this"
        )
    return tuple(agreements)
