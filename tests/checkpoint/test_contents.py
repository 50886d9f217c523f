"""What a file is, by its content: formats under other names are read, and foreign ones named as what they are."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, FitSettings, expand, fit_model, open_source
from spm_compress.errors import SourceError, SpmError, UsageError

WEIGHT = torch.arange(64.0 * 64).reshape(64, 64)


def as_safetensors(path: Path) -> None:
    save_file({"w": WEIGHT}, path)


def as_torch(path: Path) -> None:
    torch.save({"w": WEIGHT}, path)


def as_legacy_torch(path: Path) -> None:
    torch.save({"w": WEIGHT}, path, _use_new_zipfile_serialization=False)


def as_onnx(path: Path, **options: str) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(WEIGHT.T.numpy(), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **options)
    path.write_bytes(model.SerializeToString())


def as_named_onnx(path: Path) -> None:
    as_onnx(path, producer_name="somebody")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(WEIGHT.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.w.T


def as_program(path: Path) -> None:
    scratch = path.with_name("scratch.pt2")
    torch.export.save(torch.export.export(Net(), (torch.ones(2, 64),)), scratch)
    scratch.replace(path)


@pytest.mark.parametrize("name", ["m", "m.safetensors", "m.bin", "m.pt", "m.pth.tar", "m.tar", "m.onnx", "m.pt2"])
@pytest.mark.parametrize(
    "write", [as_safetensors, as_torch, as_legacy_torch, as_onnx, as_named_onnx, as_program], ids=lambda f: f.__name__
)
def test_a_model_is_read_whatever_it_is_called(write: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    write(tmp_path / name)
    assert torch.equal(open_source(tmp_path / name).read("w"), WEIGHT)


def torchscript(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(nn.Linear(64, 64)).save(str(path))


def numpy(path: Path, save: Callable[..., None], *arrays: np.ndarray) -> None:
    """By a file of its own: numpy adds its own ending to a name."""
    with path.open("wb") as file:
        save(file, *arrays)


def zipped(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x" * 50)


def tarred(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"), io.BytesIO())


def field(number: int, content: bytes | int) -> bytes:
    """One field of protobuf of less than 128 bytes or of a small number."""
    key = number << 3
    head = bytes([key & 0x7F | 0x80, key >> 7]) if key > 0x7F else bytes([key])
    if isinstance(content, int):
        return head + bytes([content])
    return bytes([head[0] | 2, *head[1:], len(content)]) + content


def ctranslate2(path: Path) -> None:
    """The beginning of model.bin as its converter writes it: a version, a string with its length, a revision."""
    name = b"TransformerSpec\0"
    path.write_bytes(
        struct.pack("<I", 6) + struct.pack("<H", len(name)) + name + struct.pack("<II", 7, 200) + bytes(99)
    )


FOREIGN: list[tuple[Callable[[Path], object], str]] = [
    (torchscript, r"is a TorchScript program \(torch\.jit\.save\), which is code .*torch\.jit\.load"),
    (lambda path: path.write_bytes(b"\n<!DOCTYPE html>\n<html><body>404"), r"is a web page \(HTML\)"),
    (lambda path: path.write_bytes(b"<HTML lang=en>"), r"is a web page \(HTML\)"),
    (lambda path: path.write_bytes(b"\xef\xbb\xbf<!-- x --> <html>"), r"is a web page \(HTML\)"),
    (lambda path: path.write_bytes(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>"), "is an XML document"),
    (lambda path: path.write_bytes(b'<?xml version="1.0"?>\n<net name="m" version="11">'), "of an OpenVINO model"),
    (
        lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"),
        "is a git-lfs pointer.*git lfs pull",
    ),
    (lambda path: numpy(path, np.save, np.ones(3)), r"is a NumPy array \(\.npy\)"),
    (lambda path: numpy(path, np.savez, np.ones(3)), r"is a NumPy archive \(\.npz\)"),
    (lambda path: numpy(path, np.savez_compressed, np.ones(3)), r"is a NumPy archive \(\.npz\)"),
    (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(90)), "is an HDF5 file, as Keras"),
    (lambda path: zipped(path, "metadata.json", "config.json", "model.weights.h5"), "is a Keras model"),
    (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(90)), "is a TensorFlow Lite model"),
    (lambda path: path.write_bytes(b"\x1c\0\0\0ORTM" + bytes(90)), "ONNX Runtime's own format"),
    (lambda path: path.write_bytes(field(1, 1) + field(2, field(1, b"meta"))), "is a TensorFlow SavedModel"),
    (
        lambda path: path.write_bytes(field(1, field(1, b"x") + field(2, b"Placeholder")) + field(4, field(1, 27))),
        r"is a TensorFlow graph \(GraphDef\)",
    ),
    (lambda path: path.write_bytes(field(1, 4) + field(2, field(1, b"in")) + field(500, b"\x08\x01")), "is a Core ML"),
    (
        lambda path: path.write_bytes(bytes(90) + b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"),
        "index of a TensorFlow checkpoint",
    ),
    (ctranslate2, "is a CTranslate2 model"),
    (lambda path: path.write_bytes(b"lmgg" + bytes(90)), "is a GGML file, which came before GGUF"),
    (lambda path: path.write_bytes(b"\x81\xa6params\x81\xa5dense" + bytes(9)), "is a MessagePack file, as Flax"),
    (lambda path: zipped(path, "weights/model.safetensors", "readme"), "is a zip archive of 'weights/model.safeten"),
    (lambda path: path.write_bytes(gzip.compress(b"model")), "is a gzip archive; unpack it"),
    (tarred, "is a tar archive; unpack it"),
]


@pytest.mark.parametrize("name", ["m", "m.pt", "m.bin", "m.safetensors", "m.onnx", "m.pth.tar"])
@pytest.mark.parametrize(("write", "words"), FOREIGN, ids=[words for _, words in FOREIGN])
def test_a_foreign_file_is_named_as_what_it_is(
    write: Callable[[Path], object], words: str, name: str, tmp_path: Path
) -> None:
    write(tmp_path / name)
    with pytest.raises(SourceError, match=words) as error:
        open_source(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: is ")
    assert "\n" not in str(error.value)


def test_real_files_of_others_are_told_from_onnx(tmp_path: Path) -> None:
    """A message that only begins as ONNX does, or lacks a graph, is none; and the name .onnx still says what to try."""
    as_onnx(tmp_path / "m.onnx")
    whole = (tmp_path / "m.onnx").read_bytes()
    assert onnx.load_from_string(whole).ir_version
    (tmp_path / "cut").write_bytes(whole[:-1])
    with pytest.raises(SourceError, match="not a format that can be read"):
        open_source(tmp_path / "cut")
    (tmp_path / "cut.onnx").write_bytes(whole[:-1])
    with pytest.raises(SourceError, match="is not a readable ONNX model"):
        open_source(tmp_path / "cut.onnx")


def test_where_the_content_says_nothing_the_name_decides(tmp_path: Path) -> None:
    for name, words in [
        ("m.safetensors", "is not a whole safetensors file"),
        ("m.pt", r"m\.pt: "),
        ("m.pth.tar", r"m\.pth\.tar: holds more than plain tensors|is not a whole file of torch"),
        ("m.onnx", "is not a readable ONNX model"),
        ("m.pt2", "is not a whole program of torch.export"),
        ("m.gguf", "is not a whole GGUF file|needs gguf"),
        ("m.txt", "not a format that can be read"),
    ]:
        (tmp_path / name).write_bytes(b"once upon a time")
        with pytest.raises(SourceError, match=words):
            open_source(tmp_path / name)
    (tmp_path / "m").write_bytes(b"")
    with pytest.raises(SourceError, match="is empty"):
        open_source(tmp_path / "m")


@given(content=st.binary(max_size=80))
def test_any_bytes_end_with_an_error_of_ours(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(content)
    with pytest.raises(SpmError, match=r"^\S*bytes: \S.*[^\n]$"):
        open_source(path)


def test_a_folder_is_named_as_what_it_is(tmp_path: Path) -> None:
    for i, (name, write, words) in enumerate(
        [
            ("model.bin", ctranslate2, r"model\.bin: is a CTranslate2 model"),
            ("saved_model.pb", Path.touch, ": is a TensorFlow SavedModel"),
            ("adapter_config.json", Path.touch, ": is an adapter .* merge it first, peft: merge_and_unload"),
            ("adapter_model.safetensors", Path.touch, ": is an adapter .* merge it first, peft: merge_and_unload"),
            ("flax_model.msgpack", Path.touch, ": holds Flax's weights alone"),
            ("model_index.json", Path.touch, ": is a pipeline of several models"),
            ("big.Q4_K_M.gguf", Path.touch, r"name a file in it: big\.Q4_K_M\.gguf"),
            ("onnx/model.onnx", Path.touch, r"name a file in it: onnx/model\.onnx"),
            ("readme.md", Path.touch, r"holds no model\.safetensors"),
        ]
    ):
        folder = tmp_path / str(i)
        (folder / name).parent.mkdir(parents=True)
        write(folder / name)
        with pytest.raises(SourceError, match=words):
            open_source(folder)


def test_what_cannot_be_opened_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").mkdir()
    with pytest.raises(SourceError, match=r"pytorch_model\.bin: cannot be read \(Is a directory\); check"):
        open_source(tmp_path)


def test_an_adapter_beside_its_whole_model_is_no_obstacle(tmp_path: Path) -> None:
    as_safetensors(tmp_path / "model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    assert set(open_source(tmp_path).tensors()) == {"w"}


def test_files_of_a_folder_are_read_by_content_too(tmp_path: Path) -> None:
    as_torch(tmp_path / "model.safetensors")
    assert torch.equal(open_source(tmp_path).read("w"), WEIGHT)
    (tmp_path / "model.safetensors").unlink()
    as_safetensors(tmp_path / "pytorch_model.bin")
    assert torch.equal(open_source(tmp_path).read("w"), WEIGHT)
    (tmp_path / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin: is a git-lfs pointer"):
        open_source(tmp_path)
    shutil.move(tmp_path / "pytorch_model.bin", tmp_path / "model.safetensors")
    with pytest.raises(SourceError, match=r"model\.safetensors: is a git-lfs pointer"):
        open_source(tmp_path)


def test_an_artifact_knows_whether_it_is_of_a_graph_whatever_the_file_is_called(tmp_path: Path) -> None:
    as_onnx(tmp_path / "graph.bin")
    as_torch(tmp_path / "weights.onnx")
    settings = CompressSettings(FitSettings(stages=2, steps=1, block=8))
    of_graph, of_weights = (
        fit_model(open_source(tmp_path / name), settings, beside=tmp_path) for name in ("graph.bin", "weights.onnx")
    )
    with pytest.raises(UsageError, match="the artifact is of an ONNX model"):
        expand(of_graph)
    assert set(expand(of_weights).tensors) == {"w"}


def test_an_index_of_torch_files_is_one_model(tmp_path: Path) -> None:
    torch.save({"a": WEIGHT}, tmp_path / "pytorch_model-00001-of-00002.bin")
    torch.save({"b": WEIGHT + 1}, tmp_path / "pytorch_model-00002-of-00002.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    files = {name: f"pytorch_model-0000{i}-of-00002.bin" for i, name in enumerate("ab", 1)}
    index.write_text(json.dumps({"weight_map": files}))
    for path in (index, tmp_path):
        source = open_source(path)
        assert list(source.tensors()) == ["a", "b"]
        assert torch.equal(source.read("b"), WEIGHT + 1)
    index.write_text(json.dumps({"weight_map": {**files, "c": files["a"]}}))
    with pytest.raises(SourceError, match="does not hold tensor 'c'"):
        open_source(index)


def test_a_pointer_among_the_shards_is_named(tmp_path: Path) -> None:
    as_safetensors(tmp_path / "one.safetensors")
    (tmp_path / "two.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 9\n")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": "one.safetensors", "v": "two.safetensors"}}))
    with pytest.raises(SourceError, match=r"two\.safetensors: is a git-lfs pointer"):
        open_source(index)
