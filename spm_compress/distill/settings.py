"""What a recovery is asked for."""

from __future__ import annotations

import enum
import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from spm_compress.errors import UsageError
from spm_compress.forms.settings import LARGEST_SEED

__all__ = ["DistillSettings", "End", "Loss", "Rates", "Trained", "TrainingReport"]


_LAYERS = re.compile(r"last|all|-?\d{1,4}(,-?\d{1,4})*", re.ASCII)


class Loss(enum.Enum):
    """What the student's outputs are compared by, end to end."""

    FEATURES = "features"
    LOGITS = "logits"


class Trained(enum.Enum):
    """Which parameters train: fitted weights with biases and norms, or everything that the artifact can hold."""

    SPM = "spm"
    ALL = "all"


class End(enum.Enum):
    """How learning rates fall to nothing."""

    COSINE = "cosine"
    LINEAR = "linear"


@dataclass(frozen=True)
class Rates:
    """The highest learning rate of each group of parameters.

    spm: numbers of structured forms; dense: dense maps in few bits, and other matrices; table: embeddings; norm: norms
    and biases; scale: of the scales that numbers in few bits share, relative to what they were.
    """

    spm: float = 3e-3
    dense: float = 5e-4
    table: float = 5e-4
    norm: float = 3e-3
    scale: float = 1e-3

    def __post_init__(self) -> None:
        for name, rate in asdict(self).items():
            if not 0 < rate < math.inf:
                raise UsageError(f"`rate` {name}={rate}: must be above 0")

    @classmethod
    def parse(cls, *texts: str) -> Rates:
        """Return the rates of texts such as '3e-3', for all groups, or 'spm=1e-2,table=3e-3', the others by default.

        Raises UsageError, which names the groups, for another group, and for what is no number.
        """
        names = [each.name for each in fields(cls)]
        found: dict[str, float] = {}
        for text in (part.strip() for whole in texts for part in whole.split(",")):
            name, equals, value = text.rpartition("=")
            if equals and name not in names:
                raise UsageError(f"`rate` {text!r}: the groups are {', '.join(names)}")
            try:
                found |= dict.fromkeys([name] if equals else names, float(value))
            except ValueError:
                raise UsageError(f"`rate` {text!r}: must be a number, or GROUP=NUMBER") from None
        return cls(**found)


@dataclass(frozen=True)
class DistillSettings:
    """How a student is trained to answer as its teacher.

    steps: optimizer steps, of which the share `block_share` is spent block by block; batch: samples a step, taken as
    `accumulate` batches one after the other; rates: the highest, after the share `warm_up` of steps, then falling to
    nothing as `end` says; average: decay of the mean of all numbers over the steps, which is then what is judged and
    kept, 0 for the numbers themselves; clip: largest norm of the gradient; loss: None chooses by the model's output;
    hidden: weight of the relative squared error of what the blocks `hidden_layers` answer, beside it; relations: weight
    of the divergence of the relations of attention in the blocks `relation_layers` (`relations.py`); both are last, all
    or numbers, '0,2,-1', of blocks that hold fitted weights, and of these of attention; temperature: of both
    distributions of logits; held_out: share of the data that is never trained on; check_every: steps between two looks
    at it; patience: looks without a gain after which the training ends early; keep_every: steps between states on disk;
    longest: tokens of a text; optimizer: a class of torch.optim; remember: GiB of the teacher's answers that are kept,
    so that it does not have to run on a batch that comes again; remember_disk: GiB of them on disk, where `distill` is
    told a place.
    """

    steps: int = 1000
    batch: int = 32
    accumulate: int = 1
    rates: Rates = Rates()
    end: End = End.COSINE
    average: float = 0.0
    weight_decay: float = 0.0
    warm_up: float = 0.05
    clip: float = 1.0
    block_share: float = 0.1
    loss: Loss | None = None
    hidden: float = 0.0
    hidden_layers: str = "all"
    relations: float = 0.0
    relation_layers: str = "last"
    temperature: float = 2.0
    trained: Trained = Trained.SPM
    held_out: float = 0.02
    check_every: int = 100
    patience: int = 10
    keep_every: int = 200
    longest: int = 128
    optimizer: str = "AdamW"
    remember: float = 1.0
    remember_disk: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch", 2), ("accumulate", 1), ("check_every", 1), ("patience", 1)):
            if getattr(self, name) < least:
                raise UsageError(f"--{name.replace('_', '-')} {getattr(self, name)}: must be {least} or more")
        if self.batch % self.accumulate or self.batch // self.accumulate < 2:
            raise UsageError(
                f"`accumulate` {self.accumulate}: must divide the batch of {self.batch} into parts of two or more"
            )
        if not 0 < self.held_out < 1:
            raise UsageError(f"`held_out` {self.held_out}: must be a share between 0 and 1")
        if not 0 <= self.block_share <= 1 or not 0 <= self.warm_up <= 1:
            raise UsageError(
                f"`block_share` {self.block_share}: this share and that of the warm-up lie between 0 and 1"
            )
        if not 0 < self.temperature < math.inf:
            raise UsageError(f"`temperature` {self.temperature}: must be above 0")
        if not 0 <= self.average < 1:
            raise UsageError(f"`average` {self.average}: must be 0 or more and less than 1")
        for name in ("weight_decay", "hidden", "relations", "remember_disk"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UsageError(f"`{name}` {getattr(self, name)}: must be 0 or more")
        for name in ("hidden_layers", "relation_layers"):
            if not _LAYERS.fullmatch(getattr(self, name)):
                raise UsageError(f"`{name}` {getattr(self, name)!r}: must be last, all or numbers of blocks, 0,2,-1")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise UsageError(f"`seed` {self.seed}: must be between 0 and {LARGEST_SEED}")
        kind = getattr(torch.optim, self.optimizer, None)
        if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)) or kind is torch.optim.Optimizer:
            raise UsageError(f"`optimizer` {self.optimizer!r}: is none of torch.optim; AdamW, Adam, SGD, ... are")

    @property
    def block_steps(self) -> int:
        """Steps that are spent block by block, before those end to end."""
        return round(self.block_share * self.steps)

    def to_json(self) -> dict[str, Any]:
        """Return the settings as JSON values."""
        return {name: value.value if isinstance(value, enum.Enum) else value for name, value in asdict(self).items()}


@dataclass(frozen=True)
class TrainingReport:
    """Where a training stands after a step.

    loss: mean since the last look; held_out: agreement with the teacher on the held-out data (higher is better), where
    this step looked at it; best: the highest so far; rate: share of the highest learning rates; rows: samples a second.
    """

    step: int
    steps: int
    stage: str
    loss: float
    rate: float
    rows: float
    held_out: float | None
    best: float


OnReport = Callable[[TrainingReport], None]
