"""Monarch matrices: two block-diagonal factors with the perfect shuffle between them."""

from spm_compress.forms.monarch.form import Monarch

__all__ = ["Monarch"]
