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
    if hasattr(model, "get_text_features") and hasattr(model, "get_image_features"):  # a model of pairs, as CLIP
        example |= _main_input("pixel_values", config)
    if is_encoder_decoder(model):
        example["decoder_input_ids"] = _tokens(config)
    return example


def _main_input(name: str, config: Mapping[str, Any]) -> dict[str, Tensor]:
    match name:
        case "pixel_values":
            of_images = _part(config, "vision_config", "encoder")
            size = of_images.get("image_size", 224)
            height, width = size if isinstance(size, (list, tuple)) else (size, size)
            return {name: torch.zeros(_ROWS, of_images.get("num_channels", 3), height, width)}
        case "input_features":
            frames = 2 * int(config.get("max_source_positions", 1500))
            return {name: torch.zeros(_ROWS, int(config.get("num_mel_bins", 80)), frames)}
        case "input_values":
            return {name: torch.zeros(_ROWS, _SAMPLES)}
    return {"input_ids": _tokens(config)}


def _tokens(config: Mapping[str, Any]) -> Tensor:
    known = _part(config, "text_config", "decoder")
    return torch.arange(_ROWS * _TOKENS).reshape(_ROWS, _TOKENS) % int(known.get("vocab_size", 2))


def _part(config: Mapping[str, Any], *names: str) -> Mapping[str, Any]:
    """Return the config of a half of a model that has one for each, else the whole."""
    return next((config[name] for name in names if isinstance(config.get(name), Mapping)), config)
