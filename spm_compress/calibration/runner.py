"""Running a model on calibration data and watching the inputs of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from spm_compress.calibration.data import Batch
from spm_compress.calibration.onnx_runner import open_onnx_runner
from spm_compress.calibration.torch_runner import open_torch_runner
from spm_compress.checkpoint.modules import is_live
from spm_compress.checkpoint.source import Source
from spm_compress.errors import UsageError

__all__ = ["Runner", "open_runner"]


class Runner(Protocol):
    """A model with its calibration data; names are those of the source's tensors."""

    @property
    def batches(self) -> Sequence[Batch]:
        """The data, in the order in which it is run."""

    def order(self, names: Sequence[str]) -> list[tuple[str, ...]]:
        """Return the names in the order in which the model uses them; those of one input together.

        A name whose input cannot be watched is left out.
        """

    def inputs(self, names: Sequence[str], batch: Batch) -> dict[str, list[Tensor]]:
        """Run one batch; return name -> what the weight is multiplied with, (rows, n) float32, at each of its uses."""

    def replace(self, name: str, weight: Tensor, correction: Tensor) -> None:
        """From now on compute with another weight (out, in) and add correction (out,)."""


def open_runner(source: Source, data: Path) -> Runner:
    """Return the model of a source with the batches of a file.

    Raises UsageError for a source that has no graph, and what `read_batches` raises.
    """
    if source.graph is not None:
        return open_onnx_runner(source, data)
    if is_live(source):
        return open_torch_runner(source, data)
    raise UsageError(
        f"{source.path}: holds weights without a model that can be run on {data}; "
        "calibrate a Hugging Face folder, an .onnx model or what a `factory` builds"
    )
