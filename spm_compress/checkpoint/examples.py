"""Inputs that a Hugging Face model can be called with, from what its config says."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["example_inputs", "is_encoder_decoder"]

_ROWS, _TOKENS, _SAMPLES = 2, 8, 16_000


def is_encoder_decoder(model: nn.Module) -> bool:
    """Whether a model is called with the inputs of an encoder and those of a decoder."""
    return "decoder_input_ids" in inspect.signature(model.forward).parameters and hasattr(model, "get_encoder")


def example_inputs(model: nn.Module, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return two samples of every input that the model needs; of an encoder-decoder those of both halves."""
    accepted = inspect.signature(model.forward).parameters
    main = getattr(model, "main_input_name", "input_ids")
    example = _main_input(main, config)
    if main == "input_ids":
        tokens = example["input_ids"]
        if "attention_mask" in accepted:
            example["attention_mask"] = torch.ones_like(tokens)
        if "token_type_ids" in accepted and config.get("type_vocab_size", 0):
            example["token_type_ids"] = torch.zeros_like(tokens)
    if is_encoder_decoder(model):
        example["decoder_input_ids"] = _tokens(config)
    return example


def _main_input(name: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    match name:
        case "pixel_values":
            size = config.get("image_size", 224)
            height, width = size if isinstance(size, (list, tuple)) else (size, size)
            return {name: torch.zeros(_ROWS, config.get("num_channels", 3), height, width)}
        case "input_features":
            frames = 2 * int(config.get("max_source_positions", 1500))
            return {name: torch.zeros(_ROWS, int(config.get("num_mel_bins", 80)), frames)}
        case "input_values":
            return {name: torch.zeros(_ROWS, _SAMPLES)}
    return {"input_ids": _tokens(config)}


def _tokens(config: Mapping[str, Any]) -> Tensor:
    return torch.arange(_ROWS * _TOKENS).reshape(_ROWS, _TOKENS) % int(config.get("vocab_size", 2))
