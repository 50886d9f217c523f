"""How a model is exported."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from spm_compress.errors import UsageError
from spm_compress.forms.lowering import Blocks, Dense, Layout, Lowering, Stages

__all__ = ["ExportSettings", "Precision", "Weights"]


class Precision(enum.Enum):
    """In what the exported model computes: all of it in float32 or float16, or its dense weights in int8."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


class Weights(enum.Enum):
    """What ONNX Runtime makes of dense maps in 4 bits at load: numbers of 8 or 32 bits, or 4 bits; or the fastest."""

    FOLDED = "folded"
    NBITS = "nbits"
    AUTO = "auto"


@dataclass(frozen=True)
class ExportSettings:
    """How the layers run, and where.

    lowering: the one for all layers, None for the fastest of each; batches, sequence: sizes of the model's input at
    which that is found out; threads: 0 for all cores; provider: ONNX Runtime's name. allow_missing: whether a fitted
    weight that is not in the graph is no error; with_past: whether a decoder takes and gives keys and values.
    rounds_activations: whether dense maps of 8 bits or less may run as products of whole numbers, where that is faster.
    weights: of dense maps in 4 bits; nbits takes them out of the choice.
    """

    lowering: Lowering | None = None
    batches: tuple[int, ...] = (1,)
    sequence: int = 128
    threads: int = 0
    provider: str = "CPUExecutionProvider"
    precision: Precision = Precision.FLOAT32
    allow_missing: bool = False
    with_past: bool = False
    rounds_activations: bool = True
    weights: Weights = Weights.FOLDED

    @staticmethod
    def named(lowering: str, layout: Layout = Layout.FEATURE_MAJOR) -> Lowering | None:
        """Return the lowering of a name, None for "auto". Raises UsageError for any other name."""
        match lowering:
            case "auto":
                return None
            case "stages":
                return Stages(layout)
            case "blocks":
                return Blocks(layout)
            case "dense":
                return Dense()
        raise UsageError(f"`lowering` {lowering}: choose one of auto, stages, blocks, dense")
