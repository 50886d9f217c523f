"""Hugging Face folders as live torch modules."""

from __future__ import annotations

import json
from collections.abc import Container

import torch
from torch import nn

from spm_compress.checkpoint.linears import use_linears
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.wrapped import bare_names
from spm_compress.errors import SourceError, first_line
from spm_compress.quiet import quiet

__all__ = ["load_huggingface", "member_of", "module_of"]


def module_of(tensor: str, model: nn.Module, modules: Container[str]) -> str | None:
    """Return which of the modules has a checkpoint's tensor as its weight, None if none has.

    Names may differ by the model's `base_model_prefix`.
    """
    return member_of(tensor.removesuffix(".weight"), model, modules)


def member_of(name: str, model: nn.Module, members: Container[str]) -> str | None:
    """Return the name of a module or parameter, one of `members`, in a live model, None if it has none of that name.

    LoRA's wrappers (peft) leave their own words in the names of what they merged into, compiled and parallel modules
    theirs before all names.
    """
    prefix = getattr(model, "base_model_prefix", "") + "."
    plain = name.removeprefix("base_model.model.").replace(".base_layer", "")
    tried = (
        each
        for known in (name, plain, *bare_names(name))
        for each in (known, prefix + known, known.removeprefix(prefix))
    )
    return next((each for each in tried if each in members), None)


def load_huggingface(source: Source) -> nn.Module:
    """Return the model in float32, in evaluation mode, with linear layers only; no code from the folder is run.

    Raises SourceError where transformers is missing, or does not know or cannot load the architecture.
    """
    try:
        with quiet():
            import transformers
    except ImportError as error:
        raise SourceError(
            f"{source.path}: is a Hugging Face folder, and running it needs transformers; "
            "install it with: pip install 'spm-compress[hf]'"
        ) from error
    names = (source.config or {}).get("architectures") or []
    architecture = getattr(transformers, names[0], None) if names and isinstance(names[0], str) else None
    if architecture is None or not hasattr(architecture, "from_pretrained"):
        raise SourceError(
            f"{source.path / 'config.json'}: architectures {names!r} name no class of transformers "
            f"{transformers.__version__}; give the dense graph with --graph dense.onnx, or fit that ONNX file"
        )
    try:
        with quiet():
            model = architecture.from_pretrained(source.path, local_files_only=True, dtype=torch.float32)
    except (OSError, ValueError, RuntimeError, json.JSONDecodeError) as error:
        raise SourceError(
            f"{source.path}: transformers cannot load it ({first_line(error)}); check the folder"
        ) from error
    use_linears(model)
    return model.eval()  # type: ignore[no-any-return]
