"""Ways to write an SPM as ONNX, behind one interface; a new one is a file here and a line in `lowerings`."""

from collections.abc import Sequence

from spm_compress.export.lowering.blocks import Blocks
from spm_compress.export.lowering.dense import Dense
from spm_compress.export.lowering.interface import DOMAIN, Layout, Lowering, number_arrays
from spm_compress.export.lowering.stages import Stages

__all__ = ["DOMAIN", "Blocks", "Dense", "Layout", "Lowering", "Stages", "lowerings", "number_arrays"]


def lowerings() -> Sequence[Lowering]:
    """Return every lowering there is."""
    return [*(Stages(layout) for layout in Layout), *(Blocks(layout) for layout in Layout), Dense()]
