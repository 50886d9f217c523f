"""Sources as live torch modules."""

from __future__ import annotations

from collections.abc import Collection

from torch import nn

from spm_compress.checkpoint.factory_source import FactorySource
from spm_compress.checkpoint.huggingface import has_class, load_huggingface
from spm_compress.checkpoint.imported_graph import import_graph, why_not_imported
from spm_compress.checkpoint.imported_program import import_program, why_not_imported_program
from spm_compress.checkpoint.module_source import BuiltSource
from spm_compress.checkpoint.onnx_source import OnnxSource
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.checkpoint.source import Source
from spm_compress.errors import SourceError

__all__ = ["is_bare", "is_live", "load_module", "why_not_trainable"]


def is_live(source: Source) -> bool:
    """Whether a model can be called as its user does: a Hugging Face folder, what a factory builds, a module."""
    return isinstance(source, BuiltSource) or source.config is not None


def why_not_trainable(source: Source, fitted: Collection[str]) -> str | None:
    """Return why torch cannot have the model of a source again and train these fitted weights, None if it can.

    A factory builds it, transformers knows a folder's class, onnx2fx an ONNX model's operators, or a program has its
    products as torch's own. Without these libraries nothing is known of a folder or an ONNX model, and it is taken at
    its word.
    """
    if isinstance(source, ProgramSource):
        return why_not_imported_program(source, fitted)
    if isinstance(source, OnnxSource):
        return why_not_imported(source, fitted)
    if source.config is not None and not has_class(source):
        return "transformers has no class of its architecture"
    return None if isinstance(source, FactorySource) or source.config is not None else "it is weights alone"


def is_bare(source: Source) -> bool:
    """Whether a source is weights alone, whose graph can only be guessed."""
    return source.graph is None and not is_live(source) and not isinstance(source, ProgramSource)


def load_module(source: Source) -> nn.Module:
    """Return the model in float32, in evaluation mode; no code but the user's factory and transformers' own.

    An ONNX model and a program are imported (`import_graph`, `import_program`).
    Raises SourceError for a source that is no live model, or one that cannot be loaded.
    """
    if isinstance(source, BuiltSource):
        return source.build()
    if isinstance(source, OnnxSource):
        return import_graph(source)
    if isinstance(source, ProgramSource):
        return import_program(source)
    if source.config is None:
        raise SourceError(
            f"{source.path}: holds no model that torch can run; fit a Hugging Face folder, or name a function that "
            "builds the model with `factory` module:function"
        )
    return load_huggingface(source)
