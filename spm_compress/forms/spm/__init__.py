"""Stagewise Pairwise Mixers: pairings, mixers, the form, its gauges, its fit and its ONNX."""

from spm_compress.forms.spm.form import SPM, build_spm
from spm_compress.forms.spm.pairing import Schedule
from spm_compress.forms.spm.structure import Gauge, Mixer

__all__ = ["SPM", "Gauge", "Mixer", "Schedule", "build_spm"]
