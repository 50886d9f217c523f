"""Calibration data as a training sees it: a shuffled loader, and batches that are held out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Sampler

from spm_compress.calibration.torch_runner import as_tensors, batches_for
from spm_compress.checkpoint.source import Source
from spm_compress.distill.settings import DistillSettings
from spm_compress.errors import UsageError

__all__ = ["Shuffled", "samples"]


class Shuffled(Sampler[int]):
    """All indices in an order of its own for each epoch; the same seed and epoch give the same order."""

    def __init__(self, count: int, seed: int) -> None:
        self.count, self.seed, self.epoch = count, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed((self.seed << 32) + self.epoch)
        return iter(torch.randperm(self.count, generator=generator).tolist())


def samples(
    model: nn.Module, source: Source, data: Path, settings: DistillSettings
) -> tuple[DataLoader[dict[str, Tensor]], Sequence[dict[str, Tensor]]]:
    """Return a loader of batches that the model takes, and the batches that are held out.

    Texts of one length share a batch, so every n-th batch is a fair sample of the lengths. Raises what
    `calibration.read_batches` raises, and UsageError for less data than two batches.
    """
    size = settings.batch // settings.accumulate
    batches = [as_tensors(batch) for batch in batches_for(model, source, data, size, settings.longest)]
    if len(batches) < 2:
        raise UsageError(f"{data}: holds one batch of {size} at most, and one has to be held out; give more data")
    every = max(2, round(1 / settings.held_out))
    validation = batches[every // 2 :: every] or batches[-1:]
    chosen = {id(batch) for batch in validation}
    trained = [batch for batch in batches if id(batch) not in chosen]
    # Batches are whole already: the loader only brings them in order. It is torch's, so workers can be added.
    loader = DataLoader(trained, batch_size=None, sampler=Shuffled(len(trained), settings.seed))  # type: ignore[arg-type, var-annotated]
    return loader, validation
