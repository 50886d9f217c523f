"""Generation in ONNX Runtime: a decoder with its cache, and an encoder with its decoder, say what the module says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from spm_compress import CompressSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Source
from spm_compress.compress import load_model
from spm_compress.export import ExportSettings
from spm_compress.forms.lowering import Blocks

STEPS = 6
PROMPT = np.array([[3, 17, 42]])


def exported(folder: Path, *, with_past: bool) -> tuple[Source, torch.nn.Module]:
    source = open_source(folder / "m")
    artifact = fit_model(source, CompressSettings(FitSettings(stages=4, block=8, steps=5)), beside=folder)
    settings = ExportSettings(lowering=Blocks(), with_past=with_past)
    export_onnx(artifact, folder / "out.onnx", source=source, settings=settings)
    return source, load_model(artifact, source)


def opened(path: Path) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_a_decoder_with_its_cache_generates_as_the_module(tmp_path: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "m")
    _, model = exported(tmp_path, with_past=True)
    runtime = opened(tmp_path / "out.onnx")
    past = {
        each.name: np.zeros((1, each.shape[1], 0, each.shape[3]), np.float32)
        for each in runtime.get_inputs()
        if each.name.startswith("past_key_values.")
    }
    outputs = [each.name for each in runtime.get_outputs()]
    given, found = PROMPT, PROMPT
    for _ in range(STEPS):
        mask = np.ones((1, found.shape[1]), np.int64)
        answer = dict(
            zip(outputs, runtime.run(None, {"input_ids": given, "attention_mask": mask, **past}), strict=True)
        )
        past = {name: answer[name.replace("past_key_values", "present")] for name in past}
        given = answer["logits"][:, -1:].argmax(-1)
        found = np.concatenate([found, given], 1)
    tokens = torch.from_numpy(PROMPT)
    with torch.no_grad():
        for _ in range(STEPS):  # without a cache, and without generate's own rules
            tokens = torch.cat([tokens, model(input_ids=tokens, use_cache=False).logits[:, -1:].argmax(-1)], 1)
    assert found.tolist() == tokens.tolist()


def test_an_encoder_and_its_decoder_generate_as_the_module(tmp_path: Path) -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    config = T5Config(vocab_size=64, d_model=64, d_kv=16, d_ff=64, num_layers=1, num_heads=4, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(tmp_path / "m")
    _, model = exported(tmp_path, with_past=False)
    mask = np.ones_like(PROMPT)
    encoder, decoder = opened(tmp_path / "out.encoder.onnx"), opened(tmp_path / "out.decoder.onnx")
    (states,) = encoder.run(None, {"input_ids": PROMPT, "attention_mask": mask})
    found = np.zeros((1, 1), np.int64)
    for _ in range(STEPS):
        inputs = {"decoder_input_ids": found, "encoder_hidden_states": states, "encoder_attention_mask": mask}
        (logits,) = decoder.run(None, inputs)
        found = np.concatenate([found, logits[:, -1:].argmax(-1)], 1)
    tokens = torch.zeros(1, 1, dtype=torch.int64)
    with torch.no_grad():
        for _ in range(STEPS):
            logits = model(input_ids=torch.from_numpy(PROMPT), decoder_input_ids=tokens, use_cache=False).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], 1)
    assert found.tolist() == tokens.tolist()
