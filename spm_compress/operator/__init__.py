"""Floor 1: pairings, mixers, the SPM operator."""

from spm_compress.operator.canonical import to_canonical, to_general, transpose
from spm_compress.operator.pairing import Schedule
from spm_compress.operator.spm import SPM
from spm_compress.operator.structure import Mixer, Structure, build_structure

__all__ = [
    "SPM",
    "Mixer",
    "Schedule",
    "Structure",
    "build_structure",
    "to_canonical",
    "to_general",
    "transpose",
]
