"""A folder with one of everything that a command takes, and the ways in which a file of it can be wrong."""

from __future__ import annotations

import json
import shutil
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import gguf
import numpy as np
import onnx
import quantized_graphs
import torch
from made import mlp
from onnx import numpy_helper
from safetensors.torch import load_file, save_file
from small_graphs import lookup, product
from torch import nn

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, read_artifact, write_artifact

GOLDEN = Path(__file__).parents[1] / "checkpoint" / "golden"
MODULE = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Linear(64, 96), {"input": torch.randn(3, 64)}

def broken():
    raise RuntimeError("no such weights\\nsecond line")

def number():
    return 3

def unscorable(model):
    return {}["logits"]

def score(model):
    return model(torch.ones(2, 96)).sum()

def text(model):
    return "long"

def nan(model):
    return float("nan")

def other_input(model):
    return model(y=torch.ones(2, 96)).sum()

nothing = None
"""


WIDTHS = (96, 64, 64, 10)


def fill(folder: Path, bert: Path, texts: Path) -> None:
    """Write model.safetensors, its artifact and its .pt, dense.onnx, out.onnx, a BERT, its artifact and texts, code."""
    save_file(mlp(*WIDTHS).state_dict(), folder / "model.safetensors")
    torch.save(mlp(*WIDTHS).state_dict(), folder / "model.pt")
    fit = FitSettings(stages=3, block=8, steps=1)
    artifact = fit_model(open_source(folder / "model.safetensors"), CompressSettings(fit), beside=folder)
    write_artifact(artifact, folder / "mlp.spm.safetensors")
    product(folder / "dense.onnx")
    model = onnx.load(folder / "dense.onnx")
    (weight,) = model.graph.initializer
    weight.CopyFrom(numpy_helper.from_array(1.1 * numpy_helper.to_array(weight), "w"))
    onnx.save(model, folder / "out.onnx")
    (folder / "code_of_the_user.py").write_text(MODULE)
    shutil.copytree(bert, folder / "bert")
    shutil.copy(texts, folder / "texts.txt")
    settings = CompressSettings(fit, include=("encoder.*",))
    write_artifact(fit_model(open_source(folder / "bert"), settings, beside=folder), folder / "bert.spm.safetensors")


def nothing(folder: Path) -> None:
    """Leave it as it is."""


def empty(folder: Path) -> None:
    for name in ("model.safetensors", "model.pt", "out.onnx", "mlp.spm.safetensors"):
        (folder / name).write_bytes(b"")


def truncated(folder: Path) -> None:
    for name in ("model.safetensors", "model.pt", "out.onnx", "mlp.spm.safetensors"):
        (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def zeros(folder: Path) -> None:
    for name in ("model.safetensors", "model.pt", "out.onnx", "mlp.spm.safetensors"):
        (folder / name).write_bytes(b"\x00" * 500)


def whole_numbers(folder: Path) -> None:
    save_file({"0.weight": torch.ones(64, 64, dtype=torch.int32)}, folder / "model.safetensors")


def no_tensors(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")


def with_nan(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["2.weight"][0, 0] = float("nan")
    save_file(tensors, folder / "model.safetensors")


def no_artifact(folder: Path) -> None:
    for path in folder.glob("*.spm.safetensors"):
        path.unlink()


def only_bert(folder: Path) -> None:
    (folder / "mlp.spm.safetensors").unlink()


def blocked(folder: Path) -> None:
    (folder / "model.spm.safetensors").mkdir()


def later_version(folder: Path) -> None:
    save_file({}, folder / "mlp.spm.safetensors", metadata={"spm_compress": json.dumps({"version": 99})})


def missing_shard(folder: Path) -> None:
    (folder / "part.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "absent.safetensors"}}))


def outside_shard(folder: Path) -> None:
    (folder / "part.safetensors.index.json").write_text(json.dumps({"weight_map": {"w": "../else.safetensors"}}))


def not_json(folder: Path) -> None:
    (folder / "part.safetensors.index.json").write_text("{")


def empty_folder(folder: Path) -> None:
    (folder / "part").mkdir()


def changed_model(folder: Path) -> None:
    save_file(nn.Linear(96, 64).state_dict(), folder / "model.safetensors")


def other_name(folder: Path) -> None:
    product(folder / "dense.onnx", x="z")


def other_width(folder: Path) -> None:
    product(folder / "dense.onnx", dims=(4, 96))


def short(folder: Path) -> None:
    lookup(folder / "out.onnx", positions=32)


def blank_texts(folder: Path) -> None:
    (folder / "texts.txt").write_text("\n\n")


def wrong_inputs(folder: Path) -> None:
    save_file({"tokens": torch.ones(4, 8, dtype=torch.int64)}, folder / "inputs.safetensors")


def ragged_inputs(folder: Path) -> None:
    inputs = {"input_ids": torch.ones(4, 8, dtype=torch.int64), "attention_mask": torch.ones(3, 8, dtype=torch.int64)}
    save_file(inputs, folder / "inputs.safetensors")


def nan_inputs(folder: Path) -> None:
    save_file({"x": torch.full((4, 96), float("nan"))}, folder / "inputs.safetensors")


def configured(folder: Path) -> None:
    (folder / "value.toml").write_text("[fit]\nsteps = -1\n")
    (folder / "option.toml").write_text("[fit]\nstage = 4\n")
    (folder / "command.toml").write_text("[fits]\nstages = 4\n")
    (folder / "plain.toml").write_text("stages = 4\n")
    (folder / "broken.toml").write_text("[fit\n")
    (folder / "latin.toml").write_bytes(b"[fit]\ncalibration = 'caf\xe9'\n")
    (folder / "other.toml").write_text("[bench]\nbatch = 'many'\n")


def with_configuration(folder: Path) -> None:
    (folder / "spm.toml").write_text("[fit]\n")


def built(folder: Path) -> None:
    artifact = read_artifact(folder / "mlp.spm.safetensors")
    source = {**artifact.source, "factory": "code_of_the_user:build"}
    write_artifact(replace(artifact, source=source), folder / "built.spm.safetensors")


def refitted(folder: Path) -> None:
    artifact = read_artifact(folder / "mlp.spm.safetensors")
    settings = {**artifact.settings, "refit": ["2.*"]}
    write_artifact(replace(artifact, settings=settings), folder / "refitted.spm.safetensors")


def narrow_inputs(folder: Path) -> None:
    save_file({"x": torch.ones(4, 95)}, folder / "inputs.safetensors")


def no_model(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def onnx_folder(folder: Path) -> None:
    (folder / "part.onnx").mkdir()


def dangling(folder: Path) -> None:
    (folder / "link.safetensors").symlink_to("absent.safetensors")


def nested_json(folder: Path) -> None:
    (folder / "part.safetensors.index.json").write_text("[" * 100_000)


def nested_manifest(folder: Path) -> None:
    save_file({}, folder / "mlp.spm.safetensors", metadata={"spm_compress": "[" * 100_000})


def no_weight_map(folder: Path) -> None:
    (folder / "part.safetensors.index.json").write_text("[]")


def config_is_a_list(folder: Path) -> None:
    (folder / "bert" / "config.json").write_text("[]")


def code_of_a_stranger(folder: Path) -> None:
    """An architecture that transformers would have to import from the folder."""
    config = json.loads((folder / "bert" / "config.json").read_text())
    config |= {
        "model_type": "own",
        "architectures": ["AutoModel"],
        "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"},
    }
    (folder / "bert" / "config.json").write_text(json.dumps(config))
    (folder / "bert" / "own.py").write_text("raise SystemExit('it ran')\n")


def latin(folder: Path) -> None:
    (folder / "texts.txt").write_bytes("caf\xe9 noir\n".encode("latin-1"))


def in_ort_format(folder: Path) -> None:
    (folder / "model.ort").write_bytes(b"\x18\x00\x00\x00ORTM" + b"\x00" * 500)


def without_tokenizer(folder: Path) -> None:
    for path in (folder / "bert").iterdir():
        if path.name not in ("config.json", "model.safetensors"):
            path.unlink()


def without_words(folder: Path) -> None:
    without_tokenizer(folder)
    (folder / "bert" / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')


def two_models(folder: Path) -> None:
    torch.save({"generator": mlp(*WIDTHS).state_dict(), "ema": mlp(*WIDTHS).state_dict()}, folder / "model.pt")


def optimizer_alone(folder: Path) -> None:
    torch.save({"optimizer": {"state": {0: {"exp_avg": torch.ones(64, 64)}}, "param_groups": []}}, folder / "model.pt")


def torchscript(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(mlp(*WIDTHS)).save(folder / "model.pt")


def pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 90868376\n"
    (folder / "model.safetensors").write_text(text)


def page_of_a_server(folder: Path) -> None:
    (folder / "model.safetensors").write_text("<!DOCTYPE html><html><body>Please log in")


def gptq(folder: Path) -> None:
    packed = {"l.qweight": torch.ones(8, 64, dtype=torch.int32), "l.g_idx": torch.arange(64, dtype=torch.int32)}
    packed |= {"l.scales": torch.ones(64, 64).half(), "l.qzeros": torch.ones(64, 8, dtype=torch.int32)}
    save_file(packed, folder / "model.safetensors")


def adapter(folder: Path) -> None:
    """With a head that was trained whole, which could be fitted alone."""
    factors = {"l.lora_A.weight": torch.ones(64, 64), "l.lora_B.weight": torch.ones(64, 64)}
    save_file({**factors, "head.weight": torch.ones(64, 64)}, folder / "model.safetensors")


def adapter_folder(folder: Path) -> None:
    (folder / "part").mkdir()
    (folder / "part" / "adapter_config.json").write_text("{}")
    save_file({"l.lora_A.weight": torch.ones(64, 64)}, folder / "part" / "adapter_model.safetensors")


def weight_normed(folder: Path) -> None:
    torch.save(nn.utils.parametrizations.weight_norm(nn.Linear(64, 96)).state_dict(), folder / "model.pt")


def cut_gguf(folder: Path) -> None:
    writer = gguf.GGUFWriter(folder / "model.gguf", "llama")
    writer.add_tensor("w", np.ones((64, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (folder / "model.gguf").write_bytes((folder / "model.gguf").read_bytes()[:-1])


def infinite_table(folder: Path) -> None:
    table = torch.ones(64, 64)
    table[3, 4] = float("inf")
    save_file({"embed.weight": table}, folder / "model.safetensors")


def eight_bit_floats(folder: Path) -> None:
    save_file({"0.weight": torch.ones(64, 64).to(torch.float8_e4m3fn)}, folder / "model.safetensors")


def quantized_by_torch(folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        weight = torch.quantize_per_tensor(torch.ones(64, 64), 0.1, 0, torch.qint8)
        torch.save({"0.weight": weight, "2.weight": torch.ones(64, 64)}, folder / "model.pt")


def packed_by_torch(folder: Path) -> None:
    """As modules of torch.ao save themselves: the weight and its bias in a tuple."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = torch.ao.quantization.quantize_dynamic(mlp(*WIDTHS), {nn.Linear}, dtype=torch.qint8)
        torch.save({**model.state_dict(), "head.weight": torch.ones(64, 64)}, folder / "model.pt")


def packed_by_torchao(folder: Path) -> None:
    """An object of a class of torchao in the place of a weight; the package itself is not here."""
    module = types.ModuleType("torchao.quantization")
    made = type("Int4Tensor", (), {"__module__": module.__name__})
    vars(module)["Int4Tensor"] = made
    with patch.dict(sys.modules, {"torchao": types.ModuleType("torchao"), module.__name__: module}):
        torch.save({"0.weight": made(), "2.weight": torch.ones(64, 64)}, folder / "model.pt")


def sparse(folder: Path) -> None:
    torch.save({"0.weight": torch.eye(64).to_sparse()}, folder / "model.pt")


def quantized_statically(folder: Path) -> None:
    quantized_graphs.statically(folder / "dense.onnx", folder / "dense.onnx")


def quantized_dynamically(folder: Path) -> None:
    quantized_graphs.dynamically(folder / "dense.onnx", folder / "dense.onnx")


def quantized_in_blocks(folder: Path) -> None:
    quantized_graphs.in_blocks(folder / "dense.onnx", folder / "dense.onnx")
