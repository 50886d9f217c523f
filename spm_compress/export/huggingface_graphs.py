"""Hugging Face models as dense ONNX graphs: one, an encoder and a decoder, or one with keys and values of the past."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from spm_compress.checkpoint.examples import example_inputs, is_encoder_decoder
from spm_compress.checkpoint.huggingface import load_huggingface
from spm_compress.checkpoint.source import Source
from spm_compress.compress.module import set_tensors
from spm_compress.errors import ExportError, first_line
from spm_compress.export.graph import DenseGraph, Live, from_module, known_of
from spm_compress.quiet import quiet

__all__ = ["from_huggingface", "generates", "has_past"]

_BATCH = {0: "batch"}
_TOKENS = {0: "batch", 1: "sequence"}
_TOTAL = "past_sequence + sequence"
# What transformers calls keys and values of earlier tokens, since version 5.20 and before.
_CACHES = ("cache", "past_key_values")


def from_huggingface(
    source: Source, changed: Mapping[str, Tensor] | None = None, *, with_past: bool = False
) -> list[DenseGraph]:
    """Load a Hugging Face folder as a torch module (float32) and export it with dynamic axes.

    An encoder-decoder is two graphs. changed: tensors that have other values than in the folder. with_past: inputs
    past_key_values.<layer>.key and .value, (batch, heads, past_sequence, head size), and outputs present.<layer>....

    Raises SourceError where transformers is missing or does not know the architecture, ExportError for what cannot be
    exported.
    """
    model = load_huggingface(source)
    set_tensors(model, changed or {})
    try:
        return _graphs(model, source.config or {}, with_past=with_past)
    except ExportError:
        if not _written_out(model):
            raise
        return _graphs(model, source.config or {}, with_past=with_past)


def _graphs(model: nn.Module, config: Mapping[str, Any], *, with_past: bool) -> list[DenseGraph]:
    if with_past:
        return [_with_past(model, config)]
    if hasattr(model.config, "use_cache"):  # this graph has no place for keys and values of earlier tokens
        model.config.use_cache = False
    example = example_inputs(model, config)
    if is_encoder_decoder(model):
        return [_encoder(model, example), _decoder(model, example)]
    answer = _called(model, example)
    names = [name for name, value in answer.items() if isinstance(value, Tensor)]
    axes = {name: _TOKENS if value.dim() == 2 else _BATCH for name, value in example.items()}

    def answered(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        leaves = torch.utils._pytree.tree_leaves(model(**inputs))  # outputs may hold those of their parts
        return [x for x in leaves if isinstance(x, Tensor)]

    graph = from_module(model, example, axes, names)
    return [DenseGraph(graph, Live(model, answered), example=example, known=known_of(graph, example))]


def _written_out(model: Any) -> bool:
    """Let fused attention and experts compute with ordinary operators, which the exporter can follow in all models.

    It cannot follow the views around the former in T5, nor grouped products. Returns whether there was something to do.
    """
    changed = False
    with quiet():
        for kind, plain in (("attn", "eager"), ("experts", "batched_mm")):
            choose = getattr(model, f"set_{kind}_implementation", None)
            if choose is not None and getattr(model.config, f"_{kind}_implementation", None) not in (None, plain):
                with contextlib.suppress(ValueError):  # not every model has one written out
                    choose(plain)
                    changed = True
    return changed


def has_past(source: Source) -> bool:
    """Whether a Hugging Face model is a decoder that `with_past` is for."""
    return _architecture(source).endswith(("ForCausalLM", "LMHeadModel"))


def generates(source: Source) -> bool:
    """Whether a Hugging Face model generates text token by token, as decoders and encoder-decoders do."""
    kinds = ("ForConditionalGeneration", "MTModel", "ForSpeechSeq2Seq", "EncoderDecoderModel")
    return has_past(source) or _architecture(source).endswith(kinds)


def _architecture(source: Source) -> str:
    return str(((source.config or {}).get("architectures") or [""])[0])


def _called(model: nn.Module, example: Mapping[str, Tensor]) -> Any:
    try:
        with torch.no_grad(), quiet():
            return model(**example)
    except Exception as error:  # whatever a model of transformers raises
        taken = ", ".join(example)
        raise ExportError(
            f"the model cannot be called with {taken} ({first_line(error)}); give the dense model's graph with "
            "`graph` dense.onnx"
        ) from error


class _Encoder(nn.Module):
    """The encoder alone: what it is called with, its last hidden state."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.encoder = model.get_encoder()  # type: ignore[operator]


class _TextEncoder(_Encoder):
    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.encoder(input_ids=input_ids, attention_mask=attention_mask)[0]  # type: ignore[no-any-return]


class _SpeechEncoder(_Encoder):
    def forward(self, input_features: Tensor) -> Tensor:
        return self.encoder(input_features)[0]  # type: ignore[no-any-return]


class _WaveEncoder(_Encoder):
    def forward(self, input_values: Tensor) -> Tensor:
        return self.encoder(input_values)[0]  # type: ignore[no-any-return]


class _ImageEncoder(_Encoder):
    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.encoder(pixel_values)[0]  # type: ignore[no-any-return]


# The main input of a model -> its encoder.
_ENCODERS: Mapping[str, type[_Encoder]] = {
    "input_ids": _TextEncoder,
    "input_features": _SpeechEncoder,
    "input_values": _WaveEncoder,
    "pixel_values": _ImageEncoder,
}


def _encoder_of(model: nn.Module, example: Mapping[str, Tensor]) -> nn.Module:
    return next(kind(model) for name, kind in _ENCODERS.items() if name in example).eval()


class _Decoder(nn.Module):
    """The decoder and the head, on what the encoder answered."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def _answer(self, tokens: Tensor, states: Tensor, **mask: Tensor) -> Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        encoded = BaseModelOutput(last_hidden_state=states)
        return self.model(encoder_outputs=encoded, decoder_input_ids=tokens, use_cache=False, **mask)[0]  # type: ignore[no-any-return]


class _TextDecoder(_Decoder):
    def forward(
        self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor, encoder_attention_mask: Tensor
    ) -> Tensor:
        return self._answer(decoder_input_ids, encoder_hidden_states, attention_mask=encoder_attention_mask)


class _OtherDecoder(_Decoder):
    def forward(self, decoder_input_ids: Tensor, encoder_hidden_states: Tensor) -> Tensor:
        return self._answer(decoder_input_ids, encoder_hidden_states)


def _encoder(model: nn.Module, example: Mapping[str, Tensor]) -> DenseGraph:
    is_text = "input_ids" in example
    wrapped = _encoder_of(model, example)
    inputs = {name: value for name, value in example.items() if name != "decoder_input_ids"}
    axes = dict.fromkeys(inputs, _TOKENS if is_text else _BATCH)
    _called(wrapped, inputs)
    graph = from_module(wrapped, inputs, axes, ["last_hidden_state"])
    return DenseGraph(graph, Live(model, _one(wrapped)), "encoder", inputs, known=known_of(graph, inputs))


def _decoder(model: nn.Module, example: Mapping[str, Tensor]) -> DenseGraph:
    is_text = "input_ids" in example
    given = {name: value for name, value in example.items() if name != "decoder_input_ids"}
    states = _called(_encoder_of(model, example), given)
    inputs = {"decoder_input_ids": example["decoder_input_ids"], "encoder_hidden_states": states}
    axes = {
        "decoder_input_ids": {0: "batch", 1: "decoder_sequence"},
        "encoder_hidden_states": {0: "batch", 1: "sequence"} if is_text else _BATCH,
    }
    if is_text:
        inputs["encoder_attention_mask"] = example["attention_mask"]
        axes["encoder_attention_mask"] = _TOKENS
    wrapped = (_TextDecoder if is_text else _OtherDecoder)(model).eval()
    _called(wrapped, inputs)
    graph = from_module(wrapped, inputs, axes, ["logits"])
    return DenseGraph(graph, Live(model, _one(wrapped)), "decoder", inputs, known=known_of(graph, inputs))


def _one(wrapped: nn.Module) -> Callable[[Mapping[str, Tensor]], Sequence[Tensor]]:
    return lambda inputs: [wrapped(**inputs)]


class _WithPast(nn.Module):
    """A decoder whose keys and values come and go as tensors."""

    def __init__(self, model: nn.Module, keyword: str) -> None:
        super().__init__()
        self.model = model
        self.keyword = keyword

    def forward(self, input_ids: Tensor, attention_mask: Tensor, past_key_values: list[Tensor]) -> tuple[Tensor, ...]:
        from transformers import DynamicCache

        cache = DynamicCache()
        for layer in range(len(past_key_values) // 2):
            cache.update(past_key_values[2 * layer], past_key_values[2 * layer + 1], layer)
        given: dict[str, Any] = {self.keyword: cache}
        answer = self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=True, **given)
        held = answer.get(self.keyword, answer.past_key_values)
        return answer[0], *(x for layer in held.layers for x in (layer.keys, layer.values))


def _with_past(model: nn.Module, config: Mapping[str, Any]) -> DenseGraph:
    keyword = next((each for each in _CACHES if each in inspect.signature(model.forward).parameters), None)
    if is_encoder_decoder(model):
        raise ExportError(
            "`with_past`: is for decoders alone; an encoder-decoder is exported without a key-value cache, every step "
            "computes all tokens of its decoder anew; leave the option out"
        )
    if keyword is None:
        raise ExportError("`with_past`: the model takes no past_key_values; leave the option out")
    tokens = example_inputs(model, config)["input_ids"]
    wrapped = _WithPast(model, keyword).eval()
    # What a first step, without a past, answers says how many layers, heads and features there are.
    nothing: dict[str, Any] = {"past_key_values": []}
    try:
        first = _called(wrapped, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), **nothing})
    except ExportError as error:  # a state-space model keeps its state in a cache of another kind
        raise ExportError(
            f"`with_past`: the model keeps no keys and values of earlier tokens as attention does ({error.__cause__}); "
            "leave the option out"
        ) from error
    past = [torch.zeros_like(x[:, :, :3]) for x in first[1:]]
    kinds = [f"{i // 2}.{('key', 'value')[i % 2]}" for i in range(len(past))]
    mask = torch.ones(len(tokens), 3 + tokens.shape[1], dtype=torch.int64)
    example = {"input_ids": tokens, "attention_mask": mask, "past_key_values": past}
    axes = {
        "input_ids": _TOKENS,
        "attention_mask": {0: "batch", 1: "total_sequence"},
        "past_key_values": [{0: "batch", 2: "past_sequence"}] * len(past),
    }
    names = ["input_ids", "attention_mask", *(f"past_key_values.{kind}" for kind in kinds)]
    outputs = ["logits", *(f"present.{kind}" for kind in kinds)]
    graph = from_module(wrapped, example, axes, outputs, names)
    graph.graph.inputs[1].shape = ir.Shape(["batch", _TOTAL])

    def answered(inputs: Mapping[str, Tensor]) -> Sequence[Tensor]:
        given = [inputs[name] for name in names[2:]]
        return wrapped(inputs["input_ids"], inputs["attention_mask"], given)  # type: ignore[no-any-return]

    return DenseGraph(
        graph, Live(model, answered), example=dict(zip(names, [tokens, mask, *past], strict=True)), has_past=True
    )
