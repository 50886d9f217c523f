"""Floor 7: a model from its dense weights to what is shipped, in one call."""

from spm_compress.pipeline.live_model import Compressed, compress_model

__all__ = ["Compressed", "compress_model"]
