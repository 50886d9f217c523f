"""Hugging Face folders as live torch modules."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable
from typing import Any

import torch
from torch import nn

from spm_compress.checkpoint.imported_model import ImportedModel
from spm_compress.checkpoint.source import Source
from spm_compress.checkpoint.unwrapping import bare_names, use_linears
from spm_compress.errors import SourceError, first_line
from spm_compress.quiet import quiet

__all__ = ["has_class", "load_huggingface", "member_of", "module_of", "outline"]


def module_of(tensor: str, model: nn.Module, modules: Container[str]) -> str | None:
    """Return which of the modules has a checkpoint's tensor as its weight, None if none has; "" is the model itself.

    Names may differ by the model's `base_model_prefix`.
    """
    if isinstance(model, ImportedModel):
        module = model.members.get(tensor, "").removesuffix(".weight")
        return module if module in modules else None
    if tensor == "weight" and "" in modules:
        return ""
    return member_of(tensor.removesuffix(".weight"), model, modules)


def member_of(name: str, model: nn.Module, members: Container[str]) -> str | None:
    """Return the name of a module or parameter, one of `members`, in a live model, None if it has none of that name.

    LoRA's wrappers (peft) leave their own words in the names of what they merged into, compiled and parallel modules
    theirs before all names; transformers has other names in memory than in the files of some families, and what
    was imported a table of its own.
    """
    if isinstance(model, ImportedModel):
        member = model.members.get(name)
        return member if member in members else None
    prefix = getattr(model, "base_model_prefix", "") + "."
    plain = name.removeprefix("base_model.model.").replace(".base_layer", "")

    def found(names: Iterable[str]) -> str | None:
        tried = (each for known in names for each in (known, prefix + known, known.removeprefix(prefix)))
        return next((each for each in tried if each in members), None)

    return found((name, plain, *bare_names(name))) or found(_renamed(name, model))


def _renamed(name: str, model: nn.Module) -> list[str]:
    """Return what a tensor of a file is called in a model of transformers, if that has a name of its own for it."""
    if not type(model).__module__.startswith("transformers."):
        return []
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming, rename_source_key
    except ImportError:  # before version 5 both had one name
        return []
    of_family: Any = model
    changes: list[Any] = get_model_conversion_mapping(of_family)
    renamings = [each for each in changes if isinstance(each, WeightRenaming)]
    renamed = rename_source_key(name, renamings, [each for each in changes if each not in renamings])[0]
    return [] if renamed == name else [renamed]


def load_huggingface(source: Source) -> nn.Module:
    """Return the model in float32, in evaluation mode, with linear layers only; no code from the folder is run.

    Raises SourceError where transformers is missing, or does not know or cannot load the architecture.
    """
    try:
        architecture = _architecture(source)
    except ImportError as error:
        raise SourceError(
            f"{source.path}: is a Hugging Face folder, and running it needs transformers; "
            "install it with: pip install 'spm-compress[hf]'"
        ) from error
    if architecture is None:
        import transformers

        names = (source.config or {}).get("architectures") or []
        raise SourceError(
            f"{source.path / 'config.json'}: architectures {names!r} name no class of transformers "
            f"{transformers.__version__}; give the dense graph with `graph` dense.onnx, or fit that ONNX file"
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


def outline(source: Source) -> nn.Module | None:
    """Return the model on the meta device, made from its config alone, without weights.

    None where it cannot be had: without transformers, or of an architecture that it does not know.
    """
    try:
        architecture = _architecture(source) if source.config is not None else None
        if architecture is None:
            return None
        with quiet(), torch.device("meta"):
            config = architecture.config_class.from_pretrained(source.path, local_files_only=True)
            return architecture._from_config(config).eval()  # type: ignore[no-any-return]
    except Exception:  # transformers raises many types; what is wrong with a folder is said when it is loaded
        return None


def has_class(source: Source) -> bool:
    """Whether transformers has the class that a folder's config names; True where it is not installed."""
    try:
        return _architecture(source) is not None
    except ImportError:
        return True


def _architecture(source: Source) -> Any:
    """Return the class of the model, None if transformers has none of that name. Raises ImportError without it."""
    with quiet():
        import transformers
    names = (source.config or {}).get("architectures") or []
    found = getattr(transformers, names[0], None) if names and isinstance(names[0], str) else None
    return found if hasattr(found, "from_pretrained") else None
