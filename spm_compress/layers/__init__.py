"""Floor 3: the operator as layers of a neural network, fresh or fitted."""

from spm_compress.layers.linear import FormLinear, SPMLinear

__all__ = ["FormLinear", "SPMLinear"]
