"""Random files against the readers: whatever is in a file, reading it ends well or with one of our own errors.

usage: fuzz.py safetensors|manifest|onnx|torch|program|gguf [libFuzzer's options: -max_total_time=60, a corpus, ...]
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import struct
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["spm_compress"]):
    from spm_compress import checkpoint
    from spm_compress.checkpoint import gguf_source, onnx_source, plain_program, safetensors_source, torch_source
    from spm_compress.errors import SpmError
    from spm_compress.export.splicing import splice as splicing

import gguf
import numpy
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

import spm_compress
from spm_compress import CompressSettings, FitSettings
from spm_compress.codecs import codecs
from spm_compress.forms import forms
from spm_compress.forms.lowering import Layout, Stages

Q4 = gguf.GGMLQuantizationType.Q4_0
# In memory, where there is such a place: a million files a run.
HOME = Path(tempfile.mkdtemp(dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))


def read_all(source: checkpoint.Source) -> None:
    for name in source.tensors():
        source.read(name)


def safetensors(path: Path) -> None:
    read_all(safetensors_source.open_safetensors(path))


def manifest(path: Path) -> None:
    for layer in checkpoint.read_artifact(path).layers:
        layer.operator.to_dense()


def torch_file(path: Path) -> None:
    read_all(torch_source.open_torch(path))


def program(path: Path) -> None:
    plain_program.require_plain_program(path)


def gguf_file(path: Path) -> None:
    read_all(gguf_source.open_gguf(path))


def graph(path: Path) -> None:
    """Read, and put a fitted layer into it wherever it fits."""
    read_all(onnx_source.open_onnx(path))
    splicing.splice(onnx_source.open_graph(path), LAYERS, {layer.name: Stages(Layout.BATCH_MAJOR) for layer in LAYERS})


def seeds(kind: str) -> tuple[str, list[bytes]]:
    """Return the ending of the files and small valid ones to start from."""
    weight = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    plain, artifact = HOME / "w.safetensors", HOME / "w.spm.safetensors"
    save_file({"w": weight}, plain)
    artifacts = []
    for form, store, stages in itertools.product(forms(), codecs().values(), (1, 2, 3)):
        fit = FitSettings(stages=stages, steps=1, block=2, forms=(form,))
        settings = CompressSettings(replace(fit, store=store), min_features=1)
        try:
            fitted = spm_compress.fit_model(spm_compress.open_source(plain), settings, beside=HOME)
        except SpmError:
            continue  # not smaller than a matrix of this size, or larger than so many stages
        spm_compress.write_artifact(fitted, artifact)
        artifacts.append(artifact.read_bytes())
        LAYERS.extend(fitted.layers[: not LAYERS])
    if kind == "safetensors":
        return ".safetensors", [plain.read_bytes()]
    if kind == "manifest":
        return ".spm.safetensors", artifacts
    if kind == "onnx":
        ends = [helper.make_tensor_value_info(name, 1, ["n", 4]) for name in "xy"]
        nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
        made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(weight.T.numpy(), "w")])
        model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)])
        return ".onnx", [model.SerializeToString()]
    if kind == "gguf":
        writer = gguf.GGUFWriter(HOME / "w.gguf", "llama")
        writer.add_token_list(["a", "b"])
        writer.add_tensor("w", gguf.quants.quantize(numpy.ones((2, 32), numpy.float32), Q4), raw_dtype=Q4)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return ".gguf", [(HOME / "w.gguf").read_bytes()]
    found = []
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        torch.save({"state_dict": {"w": weight}}, HOME / "w.pt", **options)
        found.append((HOME / "w.pt").read_bytes())
    if kind == "torch":
        return ".pt", found
    exported = torch.export.export(torch.nn.Linear(4, 4), (weight,))
    torch.export.save(exported, HOME / "w.pt2")
    return ".pt2", [(HOME / "w.pt2").read_bytes()]


LAYERS: list[checkpoint.FittedLayer] = []
READERS: dict[str, Callable[[Path], None]] = {
    "safetensors": safetensors,
    "manifest": manifest,
    "onnx": graph,
    "torch": torch_file,
    "program": program,
    "gguf": gguf_file,
}


def mutate_header(data: bytes, most: int, seed: int) -> bytes:
    """Mutate the JSON header of a safetensors file and give it the length that it has, so that it is looked into."""
    if len(data) < 8:
        return atheris.Mutate(data, most)  # type: ignore[no-any-return]
    (length,) = struct.unpack("<Q", data[:8])
    head = bytes(data[8 : 8 + min(length, len(data))])
    if seed % 2:
        try:  # the manifest is JSON inside JSON
            outer = json.loads(head)
            inner = atheris.Mutate(outer["__metadata__"]["spm_compress"].encode(), most)
            outer["__metadata__"]["spm_compress"] = inner.decode("utf-8", "replace")
            head = json.dumps(outer).encode()
        except (ValueError, LookupError, TypeError, AttributeError):
            head = atheris.Mutate(head, most)
    else:
        head = atheris.Mutate(head, most)
    return (struct.pack("<Q", len(head)) + head + bytes(data[8 + length :]))[:most]


def main() -> None:
    kind, *options = sys.argv[1:]
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    ending, starts = seeds(kind)
    corpus = HOME / "corpus"
    corpus.mkdir()
    for i, start in enumerate(starts):
        (corpus / str(i)).write_bytes(start)
    path, read = HOME / f"x{ending}", READERS[kind]

    def once(data: bytes) -> None:
        path.write_bytes(data)
        try:
            read(path)
        except SpmError as error:
            assert str(error).strip(), "an error without words"

    custom = {"custom_mutator": mutate_header} if kind in ("safetensors", "manifest") else {}
    atheris.Setup([sys.argv[0], *options, "-rss_limit_mb=4096", "-max_len=65536", str(corpus)], once, **custom)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
