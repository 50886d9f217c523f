"""Files that somebody made to do harm: nothing outside the model's folder is read, nothing huge is allocated."""

from __future__ import annotations

import json
import re
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from made import write_header
from onnx import TensorProto, helper
from safetensors.torch import save_file
from untraced import unmeasured

from spm_compress import CompressSettings, FitSettings, fit_model, open_source
from spm_compress.calibration.data import read_batches
from spm_compress.checkpoint.tensor_info import Role
from spm_compress.errors import SourceError, UsageError


@pytest.mark.parametrize(
    "entries",
    [
        {"w": {"dtype": "F32", "shape": [1 << 20, 1 << 20], "data_offsets": [0, 1 << 42]}},
        {"w": {"dtype": "F32", "shape": [1 << 31, 1 << 31], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [-16, 0]}},
        {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [16, 0]}},
        {"w": {"dtype": "F32", "shape": [-2, -2], "data_offsets": [0, 16]}},
        {"w": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]}, "v": {"dtype": "F32", "shape": [2, 2]}},
    ],
)
def test_a_header_that_lies_is_refused(tmp_path: Path, entries: dict[str, object]) -> None:
    path = tmp_path / "model.safetensors"
    write_header(path, entries, bytes(16))
    with pytest.raises(SourceError, match="is not a whole safetensors file"):
        open_source(path)
    path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}")
    with pytest.raises(SourceError, match="is not a whole safetensors file"):
        open_source(path)


def shard_absolute(folder: Path) -> str:
    return str(folder / "secret.safetensors")


def shard_above(folder: Path) -> str:
    return "../secret.safetensors"


def shard_linked(folder: Path) -> str:
    (folder / "model" / "linked.safetensors").symlink_to(folder / "secret.safetensors")
    return "linked.safetensors"


@pytest.mark.parametrize("name", [shard_absolute, shard_above, shard_linked])
def test_a_shard_outside_the_folder_is_not_followed(tmp_path: Path, name: Callable[[Path], str]) -> None:
    (tmp_path / "model").mkdir()
    save_file({"w": torch.ones(64, 64)}, tmp_path / "secret.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"w": name(tmp_path)}}))
    with pytest.raises(SourceError, match="lies outside the model's folder; such an index is not followed"):
        open_source(index)


def external(path: Path, location: str, **more: int) -> None:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **more}.items():
        tensor.external_data.add(key=key, value=str(value))
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 64]) for name in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [tensor])
    path.write_bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]).SerializeToString())


def test_external_data_stays_in_the_folder_and_in_its_file(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(bytes(4 * 64 * 64))
    (folder / "linked").symlink_to(tmp_path / "secret")
    for location in ("../secret", str(tmp_path / "secret"), "linked"):
        external(folder / "m.onnx", location)
        with pytest.raises(SourceError, match=r"outside its folder; not followed|is not a readable ONNX model"):
            open_source(folder / "m.onnx")
    (folder / "data").write_bytes(bytes(4 * 64 * 64))
    for more in ({"offset": 4096}, {"length": 1 << 40}, {"offset": 1 << 40}):
        external(folder / "m.onnx", "data", **more)
        with pytest.raises(SourceError, match=r"reaches beyond the end of 'data'|is not a readable ONNX model"):
            open_source(folder / "m.onnx")
    external(folder / "m.onnx", "data")
    assert open_source(folder / "m.onnx").read("w").shape == (64, 64)


def test_dimensions_without_values_allocate_nothing(tmp_path: Path) -> None:
    external(tmp_path / "m.onnx", "data")
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    tensor = model.graph.initializer[0]
    tensor.ClearField("external_data")
    tensor.data_location = TensorProto.DEFAULT
    tensor.raw_data = bytes(64)
    tensor.dims[:] = [1 << 20, 1 << 20]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(SourceError):
        fit_model(open_source(tmp_path / "m.onnx"), CompressSettings(FitSettings(steps=1)), beside=tmp_path)


def test_compressed_calibration_data_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_file({"w": torch.ones(64, 64)}, tmp_path / "model.safetensors")
    np.savez_compressed(tmp_path / "bomb.npz", x=np.zeros((1 << 12, 1 << 12), np.float32))
    assert (tmp_path / "bomb.npz").stat().st_size < 1 << 17
    source = open_source(tmp_path / "model.safetensors")
    monkeypatch.setenv("SPM_COMPRESS_MAX_GIB", "0.01")
    with pytest.raises(SourceError, match=r"what it unpacks to would take 0\.1 GiB; .* SPM_COMPRESS_MAX_GIB=1"):
        read_batches(source, tmp_path / "bomb.npz")
    monkeypatch.setenv("SPM_COMPRESS_MAX_GIB", "1")
    assert len(read_batches(source, tmp_path / "bomb.npz")[0]) == 1
    monkeypatch.setenv("SPM_COMPRESS_MAX_GIB", "much")
    with pytest.raises(UsageError, match="SPM_COMPRESS_MAX_GIB=much: is not a number of GiB"):
        read_batches(source, tmp_path / "bomb.npz")


def test_none_of_them_needs_memory(tmp_path: Path) -> None:
    """The same files again, in a process that may not have a GiB more than it starts with."""
    both = [__file__, str(Path(__file__).with_name("test_hostile_artifacts.py"))]
    program = (
        "import resource, sys, pytest, torch\n"
        "import spm_compress.compress, spm_compress.calibration, onnx\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))\n"
        f"sys.exit(pytest.main(['-q', '-n', '0', '-p', 'no:cacheprovider', *{both!r}, '-k', 'not memory']))\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip(f"needs /proc to measure, {resource.__name__} to limit")
    done = subprocess.run(
        [sys.executable, "-c", program], env=unmeasured(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def legacy(path: Path) -> bytes:
    torch.save({"w": torch.ones(4, 4)}, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def test_what_the_fuzzer_found(tmp_path: Path) -> None:
    """Files on which torch, zipfile or the splice once ended with an error of their own."""
    path = tmp_path / "w.pt"
    raw = legacy(path)
    # torch asserts that every storage is there: another key for it in the list at the end.
    key = next(word for word in re.findall(rb"\d{9,}", raw))
    last = raw.rindex(key)
    path.write_bytes(raw[:last] + key[:-1] + b"x" + raw[last + len(key) :])
    with pytest.raises(SourceError, match=r"w\.pt: "):
        open_source(path)
    # An end-of-archive record that says the archive spans several disks.
    locator = b"PK\x06\x07" + struct.pack("<LQL", 1, 0, 2)
    path.write_bytes(bytes(64) + locator + b"PK\x05\x06" + bytes(18))
    with pytest.raises(SourceError, match=r"w\.pt: is not a whole file of torch\.save"):
        open_source(path)
    # A .pt2 that ends within an entry.
    program = tmp_path / "w.pt2"
    torch.export.save(torch.export.export(torch.nn.Linear(4, 4), (torch.ones(1, 4),)), program)
    with zipfile.ZipFile(program) as archive:
        entry = next(each for each in archive.infolist() if each.filename.endswith("model.json"))
    whole = bytearray(program.read_bytes())
    at = whole.rindex(entry.filename.encode()) - 46  # its record in the central directory
    whole[at + 20 : at + 28] = struct.pack("<LL", 1 << 30, 1 << 30)
    program.write_bytes(bytes(whole))
    with pytest.raises(SourceError, match=r"w\.pt2: is not a whole program of torch\.export"):
        open_source(program)
    # A product without an output.
    (tmp_path / "data").write_bytes(np.eye(64, dtype=np.float32).tobytes())
    external(tmp_path / "m.onnx", "data")
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    model.graph.node[0].ClearField("output")
    onnx.save(model, tmp_path / "m.onnx")
    assert open_source(tmp_path / "m.onnx").tensors()["w"].role is Role.OTHER
    # Values in the field of another dtype.
    model = onnx.load(tmp_path / "m.onnx", load_external_data=False)
    (weight,) = model.graph.initializer
    weight.CopyFrom(onnx.TensorProto(name="w", dims=[1], data_type=onnx.TensorProto.FLOAT, double_data=[1.0]))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(SourceError, match=r"m\.onnx: w is damaged"):
        open_source(tmp_path / "m.onnx")


def matmul_model(path: Path, *, op_type: str = "MatMul", inputs: tuple[str, ...] = ("x", "w"), dtype: int = 1) -> Path:
    values = np.ones(64, np.float32)
    weight = helper.make_tensor("w", dtype, [8, 8], values)
    ends = [helper.make_tensor_value_info(name, 1, ["n", 8]) for name in "xy"]
    node = helper.make_node(op_type, list(inputs), ["y"])
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)]), path)
    return path


@pytest.mark.parametrize(
    ("options", "swapped", "said"),
    [
        ({"inputs": ("w",)}, (b"", b""), "has a node 'MatMul' that is none of ONNX"),
        ({"op_type": ""}, (b"", b""), "has a node '' that is none of ONNX"),
        ({}, (b"MatMul", b"\xdbatMul"), "that is none of ONNX|is not a readable ONNX model"),
        ({"inputs": ("x", "vvvv")}, (b"vvvv", b"\xdbvvv"), "whose name is no text|is not a readable ONNX model"),
        ({"dtype": TensorProto.FLOAT4E2M1}, (b"", b""), "tensor 'w' cannot be read"),
    ],
    ids=["one factor", "no operator", "operator that is no text", "value that is no text", "type of four bits"],
)
def test_a_graph_that_is_no_onnx_is_one_line(
    options: dict[str, Any], swapped: tuple[bytes, bytes], said: str, tmp_path: Path
) -> None:
    path = matmul_model(tmp_path / "m.onnx", **options)
    path.write_bytes(path.read_bytes().replace(*swapped) if swapped[0] else path.read_bytes())
    with pytest.raises(SourceError, match=said) as raised:
        source = open_source(path)
        for name in source.tensors():
            source.read(name)
    assert "\n" not in str(raised.value)
