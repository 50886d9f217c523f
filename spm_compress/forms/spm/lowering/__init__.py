"""An SPM as ONNX: stage by stage, group by group, or multiplied out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import onnx_ir as ir

from spm_compress.forms.emitter import Emitter
from spm_compress.forms.lowering import Blocks, Dense, Layout, Lowering, Stages
from spm_compress.forms.spm.lowering.blocks import BlocksBody
from spm_compress.forms.spm.lowering.chain_emitter import ChainEmitter
from spm_compress.forms.spm.lowering.folded import folded
from spm_compress.forms.spm.lowering.operands import Operands
from spm_compress.forms.spm.lowering.stages import StagesBody

if TYPE_CHECKING:
    from spm_compress.forms.spm.form import SPM

__all__ = ["constants", "folded", "lower"]


def constants(structure: SPM, emit: Emitter, lowering: Lowering) -> Mapping[str, ir.Value]:
    """Emit the coefficients of all stages, or what they are multiplied out to."""
    chains = ChainEmitter(emit, structure)
    if isinstance(lowering, Stages):
        return chains.stage_by_stage()
    return Operands(chains, lowering.layout or Layout.FEATURE_MAJOR).all()


def lower(structure: SPM, emit: Emitter, x: ir.Value | None, lowering: Lowering) -> ir.Value:
    """Emit the map of x, laid out as the lowering says; without x the matrix, as the map of the identity."""
    chains = ChainEmitter(emit, structure)
    match lowering:
        case Stages() if x is not None:
            return StagesBody(chains, lowering.layout).map(x)
        case Blocks() if x is not None:
            return BlocksBody(chains, lowering.layout).map(x)
        case Dense() if x is None:
            return BlocksBody(chains, Layout.FEATURE_MAJOR).matrix()
    raise AssertionError("only the dense lowering comes without an x")
