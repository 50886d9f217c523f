"""Sources as live torch modules."""

from __future__ import annotations

from torch import nn

from spm_compress.checkpoint.factory_source import FactorySource
from spm_compress.checkpoint.huggingface import has_class, load_huggingface
from spm_compress.checkpoint.module_source import BuiltSource
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.source import Source
from spm_compress.errors import SourceError

__all__ = ["is_bare", "is_live", "is_trainable", "load_module"]


def is_live(source: Source) -> bool:
    """Whether `load_module` has something to load: a Hugging Face folder, what a factory builds, a module."""
    return isinstance(source, BuiltSource) or source.config is not None


def is_trainable(source: Source) -> bool:
    """Whether torch can have the model of a source again: a factory builds it, or transformers knows a folder's class.

    Without transformers nothing is known of a folder, and it is taken at its word.
    """
    return isinstance(source, FactorySource) or (source.config is not None and has_class(source))


def is_bare(source: Source) -> bool:
    """Whether a source is weights alone, whose graph can only be guessed."""
    return source.graph is None and not is_live(source) and not isinstance(source, ProgramSource)


def load_module(source: Source) -> nn.Module:
    """Return the model in float32, in evaluation mode; no code but the user's factory and transformers' own.

    Raises SourceError for a source that is no live model, or one that cannot be loaded.
    """
    if isinstance(source, BuiltSource):
        return source.build()
    if source.config is None:
        raise SourceError(
            f"{source.path}: holds no model that torch can run; fit a Hugging Face folder, or name a function that "
            "builds the model with `factory` module:function"
        )
    return load_huggingface(source)
