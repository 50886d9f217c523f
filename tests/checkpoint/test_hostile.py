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
from onnx import TensorProto, helper
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from spm_compress import CompressSettings, FitSettings, expand, fit_model, open_source, read_artifact, write_artifact
from spm_compress.calibration.data import read_batches
from spm_compress.checkpoint import Artifact, FittedLayer
from spm_compress.checkpoint.tensor_info import Role
from spm_compress.errors import ArtifactError, SourceError, UsageError
from spm_compress.forms import Operator, StoredOperator
from spm_compress.forms.low_rank import LowRank


def header(path: Path, entries: dict[str, object], data: bytes = b"") -> None:
    text = json.dumps(entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


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
    header(path, entries, bytes(16))
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


def fitted_artifact(folder: Path, forms: tuple[str, ...] = ("spm",)) -> Path:
    save_file({"w": torch.randn(64, 64)}, folder / "model.safetensors")
    path = folder / "model.spm.safetensors"
    settings = CompressSettings(FitSettings(stages=8, steps=1, forms=forms))
    write_artifact(fit_model(open_source(folder / "model.safetensors"), settings, beside=folder), path)
    return path


def manifest_in(path: Path) -> dict[str, Any]:
    with safe_open(path, framework="pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["spm_compress"])
    return found


def without_stages(width: int) -> dict[str, Any]:
    groups = [{"order": [1, 0], "stages": 0, "low": 1, "descending": False}]
    return {
        "kind": "spm",
        "mixer": "general",
        "gauge": "canonical",
        "in_features": width,
        "out_features": width,
        "chains": [{"width": width, "scales": [], "groups": groups}],
    }


# What a form claims, and the arrays, none of which has a number, by which that would be true.
HUGE = 1 << 50
CLAIMS: dict[str, tuple[dict[str, Any], dict[str, list[int]]]] = {
    "spm": (without_stages(HUGE), {"0.off_diagonal": [0, HUGE]}),
    "low_rank": (
        {"kind": "low_rank", "in_features": HUGE, "out_features": HUGE, "rank": 0},
        {"left": [HUGE, 0], "right": [0, HUGE]},
    ),
    "wide_dense": ({"kind": "dense", "in_features": HUGE, "out_features": 0}, {"weight": [0, HUGE]}),
    "tall_dense": ({"kind": "dense", "in_features": 0, "out_features": HUGE}, {"weight": [HUGE, 0]}),
    "sum": (
        {
            "kind": "sum",
            "parts": [
                without_stages(HUGE),
                {"kind": "low_rank", "in_features": HUGE, "out_features": HUGE, "rank": 0},
            ],
        },
        {"0.0.off_diagonal": [0, HUGE], "1.left": [HUGE, 0], "1.right": [0, HUGE]},
    ),
}


@pytest.mark.parametrize("claim", CLAIMS)
def test_an_artifact_that_claims_any_width_is_damaged(tmp_path: Path, claim: str) -> None:
    path = fitted_artifact(tmp_path)
    manifest = manifest_in(path)
    form, arrays = CLAIMS[claim]
    shape = [form.get("out_features", HUGE), form.get("in_features", HUGE)]
    manifest["layers"][0].update(form=form, codecs=dict.fromkeys(arrays, "float32"), shape=shape)
    numbers = {f"w.spm.{name}": {"dtype": "F32", "shape": of, "data_offsets": [0, 0]} for name, of in arrays.items()}
    header(path, {"__metadata__": {"spm_compress": json.dumps(manifest)}, **numbers})
    with pytest.raises(ArtifactError, match="manifest is damaged"):
        read_artifact(path)


def claimed(width: int, **groups: Any) -> dict[str, Any]:
    form = without_stages(width)
    form["chains"][0]["groups"][0].update(groups)
    return form


def rotations_without_a_pair(layer: dict[str, Any]) -> dict[str, Any]:
    """Of the largest stride below such a width there is one pair."""
    return {**claimed(HUGE + 1, stages=1, low=HUGE), "mixer": "rotation", "gauge": "free"}


def strides_beyond_the_width(layer: dict[str, Any]) -> dict[str, Any]:
    return claimed(64, stages=7, low=1)


def a_table_that_is_not_there(layer: dict[str, Any]) -> dict[str, Any]:
    return claimed(HUGE, stages=1, order="table")


def outputs_that_no_chain_has(layer: dict[str, Any]) -> dict[str, Any]:
    return {**claimed(64, stages=1), "out_features": HUGE}


def stages_in_words(layer: dict[str, Any]) -> dict[str, Any]:
    return claimed(64, stages="1")


SPM_CLAIMS = [
    *(rotations_without_a_pair, strides_beyond_the_width, a_table_that_is_not_there),
    *(outputs_that_no_chain_has, stages_in_words),
]


@pytest.mark.parametrize("claim", SPM_CLAIMS)
def test_an_spm_that_lies_is_damaged_before_it_costs_memory(
    tmp_path: Path, claim: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    path = fitted_artifact(tmp_path)
    manifest = manifest_in(path)
    layer = manifest["layers"][0]
    layer["form"] = claim(layer)
    layer["shape"] = [layer["form"]["out_features"], layer["form"]["in_features"]]
    kind, numbers = ("angles", torch.zeros(1)) if layer["form"]["mixer"] == "rotation" else ("off_diagonal", None)
    groups = layer["form"]["chains"][0]["groups"]
    numbers = torch.zeros(int(groups[0]["stages"]), 64) if numbers is None else numbers
    layer["codecs"] = {f"0.{kind}": "float32"}
    save_file({f"w.spm.0.{kind}": numbers}, path, metadata={"spm_compress": json.dumps(manifest)})
    with pytest.raises(ArtifactError, match="manifest is damaged"):
        read_artifact(path)


MANIFESTS: list[tuple[str, dict[str, Any]]] = [
    ("version '6.n7'", {"version": "6\n7"}),
    ("version 6.0", {"version": 6.0}),
    ("version True", {"version": True}),
    ("version 0", {"version": 0}),
    ("a part of the name 'x+", {"shards": ["x" * 5000]}),
    ("a part of the name 7", {"shards": [7]}),
]


@pytest.mark.parametrize(("told", "change"), MANIFESTS)
def test_a_manifest_that_lies_is_one_line(tmp_path: Path, told: str, change: dict[str, Any]) -> None:
    path = fitted_artifact(tmp_path)
    save_file(load_file(path), path, metadata={"spm_compress": json.dumps({**manifest_in(path), **change})})
    with pytest.raises(ArtifactError, match=f"its manifest is damaged .*{told}") as refused:
        read_artifact(path)
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize("change", [{"names": "w"}, {"names": [7]}, {"steps": "1"}, {"shape": [64.0, 64]}])
def test_an_entry_of_a_layer_is_of_its_types(tmp_path: Path, change: dict[str, Any]) -> None:
    path = fitted_artifact(tmp_path)
    manifest = manifest_in(path)
    manifest["layers"][0].update(change)
    save_file(load_file(path), path, metadata={"spm_compress": json.dumps(manifest)})
    with pytest.raises(ArtifactError, match="manifest is damaged"):
        read_artifact(path)


def test_a_low_rank_that_is_too_large_is_not_multiplied_out(tmp_path: Path) -> None:
    save_file({"w": torch.randn(64, 64)}, tmp_path / "model.safetensors")
    path = tmp_path / "model.spm.safetensors"
    stored = StoredOperator.of(
        Operator(LowRank(1 << 19, 1 << 19, 1), {"left": torch.ones(1 << 19, 1), "right": torch.ones(1, 1 << 19)})
    )
    layer = FittedLayer(("w",), (1 << 19, 1 << 19), "F32", "0" * 64, 0.5, 0.5, 1, 0, "svd", stored)
    write_artifact(Artifact({"path": "model.safetensors", "files": {}}, {}, {}, (layer,), (), {}), path)
    with pytest.raises(SourceError, match=r"the dense w would take 1,024\.0 GiB; .* SPM_COMPRESS_MAX_GIB=1025"):
        expand(read_artifact(path))


def unknown_form(layer: dict[str, Any]) -> None:
    layer["form"]["kind"] = "magic"


def unknown_part(layer: dict[str, Any]) -> None:
    layer["form"]["parts"][1]["kind"] = "magic"


def form_that_is_no_name(layer: dict[str, Any]) -> None:
    layer["form"]["kind"] = ["spm"]


def unknown_codec(layer: dict[str, Any]) -> None:
    layer["codecs"]["1.left"] = "float8\nmagic"


def codec_that_is_no_name(layer: dict[str, Any]) -> None:
    layer["codecs"]["1.left"] = {"name": "float32"}


def codec_of_another_dtype(layer: dict[str, Any]) -> None:
    layer["codecs"]["1.left"] = "float16"


def codec_that_is_missing(layer: dict[str, Any]) -> None:
    del layer["codecs"]["1.left"]


def codecs_that_are_a_list(layer: dict[str, Any]) -> None:
    layer["codecs"] = list(layer["codecs"])


def sum_in_a_sum(layer: dict[str, Any]) -> None:
    """With the names that the arrays of such a sum would have, so that nothing else is wrong."""
    inner = layer["form"]
    layer["form"] = {"kind": "sum", "parts": [inner, inner["parts"][1]]}
    layer["codecs"] = {
        **{f"0.{name}": codec for name, codec in layer["codecs"].items()},
        **dict.fromkeys(("1.left", "1.right"), "float32"),
    }


def sums_without_end(layer: dict[str, Any]) -> None:
    for _ in range(100):
        layer["form"] = {"kind": "sum", "parts": [layer["form"], layer["form"]["parts"][1]]}


def sum_of_one(layer: dict[str, Any]) -> None:
    layer["form"]["parts"].pop()


def sum_of_very_many(layer: dict[str, Any]) -> None:
    layer["form"]["parts"] *= 10_000


def sum_of_low_ranks(layer: dict[str, Any]) -> None:
    layer["form"]["parts"][0] = layer["form"]["parts"][1]
    layer["codecs"] |= {"0.left": "float32", "0.right": "float32"}


def sum_the_other_way_round(layer: dict[str, Any]) -> None:
    layer["form"]["parts"].reverse()


def parts_of_two_shapes(layer: dict[str, Any]) -> None:
    layer["form"]["parts"][1]["in_features"] = 32


ATTACKS = [
    *(unknown_form, unknown_part, form_that_is_no_name),
    *(unknown_codec, codec_that_is_no_name, codec_of_another_dtype, codec_that_is_missing, codecs_that_are_a_list),
    *(sum_in_a_sum, sums_without_end, sum_of_one, sum_of_very_many, parts_of_two_shapes),
    *(sum_of_low_ranks, sum_the_other_way_round),
]


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_form_or_a_codec_that_lies_is_one_line(tmp_path: Path, attack: Callable[[dict[str, Any]], None]) -> None:
    path = fitted_artifact(tmp_path, ("sum",))
    manifest, tensors = manifest_in(path), load_file(path)
    assert sorted(manifest["layers"][0]["codecs"]) == sorted(
        name.removeprefix("w.spm.") for name in tensors if ".order." not in name
    )
    attack(manifest["layers"][0])
    if attack is sum_in_a_sum:
        nested = {name.replace("w.spm.", "w.spm.0."): tensor for name, tensor in tensors.items()}
        tensors = nested | {f"w.spm.1.{side}": tensors[f"w.spm.1.{side}"].clone() for side in ("left", "right")}
    save_file(tensors, path, metadata={"spm_compress": json.dumps(manifest)})
    with pytest.raises(ArtifactError, match="manifest is damaged") as refused:
        read_artifact(path)
    assert len(str(refused.value).splitlines()) == 1


def test_none_of_them_needs_memory(tmp_path: Path) -> None:
    """The same files again, in a process that may not have a GiB more than it starts with."""
    program = (
        "import resource, sys, pytest, torch\n"
        "import spm_compress.compress, spm_compress.calibration, onnx\n"
        "now = int(open('/proc/self/statm').read().split()[0]) * 4096\n"
        "resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, now + 2**30))\n"
        f"sys.exit(pytest.main(['-q', '-n', '0', '-p', 'no:cacheprovider', {__file__!r}, '-k', 'not memory']))\n"
    )
    if not Path("/proc/self/statm").exists():
        pytest.skip(f"needs /proc to measure, {resource.__name__} to limit")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
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
