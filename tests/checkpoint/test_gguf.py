"""GGUF files: against the gguf package's own reader and decoders, whole and damaged, from `fit` to `expand`."""

from __future__ import annotations

import json
import pickle
import random
import struct
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from running import spm
from safetensors.torch import load_file

from spm_compress import CompressSettings, FitSettings, expand, fit_model, open_source, read_artifact, summarize
from spm_compress.checkpoint.gguf_source import GgufSource
from spm_compress.checkpoint.tensor_info import DECODED
from spm_compress.errors import SourceError

QUICK = CompressSettings(FitSettings(stages=3, steps=2, block=8))


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Type]], *, alignment: int | None = None) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    writer.add_name("a small one")
    writer.add_context_length(128)
    writer.add_token_list(["<s>", "</s>", *(f"word{i}" for i in range(30))])
    writer.add_token_scores([0.5] * 32)
    writer.add_array("nested.numbers", [1, 2, 3])
    writer.add_bool("flag", True)
    writer.add_float64("double", 0.25)
    for name, (values, kind) in tensors.items():
        if kind in (Type.F32, Type.F16):
            writer.add_tensor(name, values.astype(np.float32 if kind == Type.F32 else np.float16))
        elif kind in (Type.I8, Type.I16, Type.I32, Type.I64, Type.F64):
            writer.add_tensor(name, values)
        else:
            packed = values if values.dtype == np.uint8 else gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def k_blocks(kind: Type, rows: int, columns: int) -> np.ndarray:
    """Random bytes of a type that the package decodes but does not make, with scales that are numbers."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    draw = np.random.default_rng(1).integers(0, 256, (rows, columns // block, size), dtype=np.uint8)
    scale = np.frombuffer(np.float16(0.01).tobytes(), np.uint8)
    places = {Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,), Type.Q2_K: (80, 82), Type.Q3_K: (108,)}
    for at in places[kind]:
        draw[:, :, at : at + 2] = scale
    return draw.reshape(rows, -1)


def llama(path: Path, *, head: bool = True) -> Path:
    """A layer as llama.cpp names it, in the types that its files mix."""
    tensors: dict[str, tuple[np.ndarray, Type]] = {
        "token_embd.weight": (matrix(300, 256), Type.Q8_0),
        "position_embd.weight": (matrix(64, 256), Type.F16),
        "output_norm.weight": (np.ones(256, np.float32), Type.F32),
        "blk.0.attn_q.weight": (k_blocks(Type.Q4_K, 256, 256), Type.Q4_K),
        "blk.0.ffn_up.weight": (matrix(512, 256, 2), Type.Q4_0),
        "blk.0.ffn_down.weight": (matrix(256, 512, 3), Type.BF16),
    }
    if head:
        tensors["output.weight"] = (k_blocks(Type.Q6_K, 300, 256), Type.Q6_K)
    return write(path, tensors)


ALL = (Type.F32, Type.F16, Type.BF16, Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1, Type.Q8_0, Type.TQ1_0, Type.TQ2_0)
KS = (Type.Q2_K, Type.Q3_K, Type.Q4_K, Type.Q5_K, Type.Q6_K)


@pytest.mark.parametrize("alignment", [None, 8, 256])
def test_every_type_reads_as_what_the_package_decodes(alignment: int | None, tmp_path: Path) -> None:
    tensors: dict[str, tuple[np.ndarray, Type]] = {each.name: (matrix(48, 256), each) for each in ALL}
    tensors |= {each.name: (k_blocks(each, 48, 256), each) for each in KS}
    for each in Type:  # what the package decodes and this test makes no other blocks of: all zeros
        if each.name.startswith(("IQ", "MXFP", "NVFP")):
            block, size = gguf.GGML_QUANT_SIZES[each]
            tensors[each.name] = (np.zeros((4, 256 // block * size), np.uint8), each)
    tensors["vector"] = (np.arange(5, dtype=np.float32), Type.F32)
    tensors["experts"] = (np.ones((2, 3, 32), np.float32), Type.F32)
    tensors |= {each.name: (np.arange(6).reshape(2, 3).astype(each.name.lower().replace("i", "int")), each) for each in
                (Type.I8, Type.I16, Type.I32, Type.I64)}  # fmt: skip
    tensors["F64"] = (matrix(2, 3).astype(np.float64), Type.F64)
    source = open_source(write(tmp_path / "m.gguf", tensors, alignment=alignment))
    assert isinstance(source, GgufSource)
    theirs = {each.name: each for each in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    assert list(source.tensors()) == sorted(theirs)
    for name, info in source.tensors().items():
        stored = theirs[name]
        assert info.shape == tuple(stored.shape.tolist()[::-1])
        assert info.dtype == stored.tensor_type.name
        found = source.read(name)
        assert tuple(found.shape) == info.shape
        if info.is_floating:
            assert info.bytes == stored.n_bytes
            kept = stored.tensor_type in (Type.F64,)
            expected = stored.data if kept else gguf.quants.dequantize(stored.data, stored.tensor_type)
            assert found.dtype == (torch.float32 if info.is_decoded else getattr(torch, _TORCH[info.dtype]))
            np.testing.assert_array_equal(found.to(torch.float64).numpy(), expected.astype(np.float64))
        else:
            np.testing.assert_array_equal(found.numpy(), stored.data)


_TORCH = {"F32": "float32", "F16": "float16", "BF16": "bfloat16", "F64": "float64"}


def test_bytes_of_a_block_are_the_packages() -> None:
    theirs = {kind.name: size / block for kind, (block, size) in gguf.GGML_QUANT_SIZES.items()}
    ours = {name: size for name, size in DECODED.items() if name not in ("Q4", "Q8")}
    assert ours.items() <= theirs.items()
    assert {name for name in theirs if name not in ours} == {*_TORCH, "I8", "I16", "I32", "I64"}


def test_only_dense_maps_are_fitted_and_the_table_stays(tmp_path: Path) -> None:
    artifact = fit_model(open_source(llama(tmp_path / "m.gguf")), QUICK, beside=tmp_path)
    dtypes = {layer.name: layer.dtype for layer in artifact.layers}
    assert dtypes == {
        "blk.0.attn_q.weight": "Q4_K",
        "blk.0.ffn_down.weight": "BF16",
        "blk.0.ffn_up.weight": "Q4_0",
        "output.weight": "Q6_K",
    }
    reasons = {kept.name: kept.reason for kept in artifact.kept}
    assert reasons["token_embd.weight"] == reasons["position_embd.weight"] == "a lookup table by its name"
    tied = fit_model(open_source(llama(tmp_path / "tied.gguf", head=False)), QUICK, beside=tmp_path)
    assert "token_embd.weight" in {kept.name for kept in tied.kept}


def test_packed_bytes_are_what_a_fit_has_to_beat(tmp_path: Path) -> None:
    """Of 64x256 weights 5 stages take 6 KiB: less than in float32 (64 KiB), more than in 2 bits a weight (5 KiB)."""
    path = write(
        tmp_path / "m.gguf",
        {"a": (matrix(64, 256), Type.F32), "b": (k_blocks(Type.Q2_K, 64, 256), Type.Q2_K)},
    )
    artifact = fit_model(open_source(path), CompressSettings(FitSettings(stages=5, steps=1, block=8)), beside=tmp_path)
    assert [layer.name for layer in artifact.layers] == ["a"]
    (kept,) = artifact.kept
    assert kept.reason.startswith("would not get smaller")
    assert kept.reason.endswith(f"{64 * 256 * 84 // 256} dense")


def test_the_commands_work_on_it_and_say_what_is_decoded(tmp_path: Path) -> None:
    llama(tmp_path / "m.gguf")
    said = "m.gguf: quantized tensors (1 Q4_0, 1 Q4_K, 1 Q6_K, 1 Q8_0) are read as the float32 that they decode to"
    run = spm("inspect", "m.gguf", "--probe-steps", "0", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[0] == said
    assert len(json.loads(run.stdout)["layers"]) == 4
    run = spm("fit", "m.gguf", "--stages", "3", "--steps", "2", "--jobs", "2", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stderr.splitlines()[0] == said
    run = spm("report", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    layers = {layer["name"]: layer for layer in json.loads(run.stdout)["layers"]}
    assert layers["blk.0.attn_q.weight"]["bytes"]["before"] == 256 * 144  # 144 bytes for 256 weights
    run = spm("expand", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "4 tensors were quantized (Q4_0, Q4_K, Q6_K, Q8_0); they are written as float32" in run.stderr
    dense = load_file(tmp_path / "m.dense.safetensors")
    source = open_source(tmp_path / "m.gguf")
    assert {name: tuple(x.shape) for name, x in dense.items()} == {n: i.shape for n, i in source.tensors().items()}
    assert dense["blk.0.ffn_up.weight"].dtype == torch.float32
    assert dense["blk.0.ffn_down.weight"].dtype == torch.bfloat16
    assert torch.equal(dense["token_embd.weight"], source.read("token_embd.weight"))
    run = spm("export", "--onnx", "out.onnx", cwd=tmp_path)
    assert run.returncode == 1
    assert len([line for line in run.stderr.splitlines() if line.startswith("error: ")]) == 1


def test_a_report_counts_what_the_file_held(tmp_path: Path) -> None:
    """Kept tensors are stored as float32; before, they were as large as in the file."""
    path = llama(tmp_path / "m.gguf")
    assert spm("fit", "m.gguf", "--stages", "3", "--steps", "1", "--quiet", cwd=tmp_path).returncode == 0
    saved = tmp_path / "m.spm.safetensors"
    savings = summarize(read_artifact(saved), saved)
    stored = sum(each.n_bytes for each in gguf.GGUFReader(path).tensors)
    assert savings.model_bytes.before == stored
    assert savings.model_bytes.after == saved.stat().st_size


def test_another_process_opens_it_itself(tmp_path: Path) -> None:
    source = open_source(llama(tmp_path / "m.gguf"))
    again = pickle.loads(pickle.dumps(source))
    assert torch.equal(again.read("output.weight"), source.read("output.weight"))
    assert source.place("output.weight") == tmp_path / "m.gguf"
    assert set(source.hashes()) == {"m.gguf"}
    assert len(expand(fit_model(source, QUICK, beside=tmp_path)).tensors) == 7


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    llama(tmp_path / "m.bin")
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(SourceError) as error:
        open_source(tmp_path / "m.bin")
    assert str(error.value) == (
        f"{tmp_path / 'm.bin'}: is a GGUF file, and reading it needs gguf; "
        "install it with: pip install 'spm-compress[gguf]'"
    )


def small(path: Path) -> bytes:
    write(path, {"w": (matrix(4, 32), Type.Q4_0), "v": (matrix(1, 3), Type.F32)})
    return path.read_bytes()


def test_a_file_that_is_cut_anywhere_is_refused_in_one_line(tmp_path: Path) -> None:
    whole = small(tmp_path / "m.gguf")
    source = open_source(tmp_path / "m.gguf")
    end = max(each.data_offset + each.n_bytes for each in gguf.GGUFReader(tmp_path / "m.gguf").tensors)
    for length in range(1, end):
        (tmp_path / "cut.gguf").write_bytes(whole[:length])
        with pytest.raises(SourceError, match=r"cut\.gguf: is not a whole GGUF file \(.*\); fetch") as error:
            open_source(tmp_path / "cut.gguf")
        assert "\n" not in str(error.value)
    (tmp_path / "m.gguf").write_bytes(whole[: end - 1])
    with pytest.raises(SourceError, match="reaches beyond its end"):  # cut after it was opened
        [source.read(name) for name in source.tensors()]


def test_any_changed_byte_ends_well_or_in_one_line(tmp_path: Path) -> None:
    whole = bytearray(small(tmp_path / "m.gguf"))
    draw = random.Random(0)
    for _ in range(2000):
        changed = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            changed[draw.randrange(4, len(changed))] = draw.choice((0, 1, 8, 9, 127, 255, draw.randrange(256)))
        (tmp_path / "x.gguf").write_bytes(changed)
        try:
            source = open_source(tmp_path / "x.gguf")
            for name in source.tensors():
                source.read(name)
        except SourceError as error:
            assert "\n" not in str(error)


def header(*, version: int = 3, tensors: int = 0, entries: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, entries)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(tensors=1 << 60), "it ends within its header"),
        (header(entries=1 << 60), "it ends within its header"),
        (header(entries=1) + text(b"a") + struct.pack("<IIQ", 9, 0, 1 << 62), "it ends within its header"),
        (header(entries=1) + text(b"a") + struct.pack("<IIQ", 9, 8, 1 << 62), "it ends within its header"),
        (header(entries=1) + text(b"a") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 99, "a value of type 9"),
        (header(entries=1) + text(b"a") + struct.pack("<I", 99), "a value of type 99"),
        (header(entries=1) + struct.pack("<Q", 1 << 63), "it ends within its header"),
        (header(entries=1) + text(b"\xff\xfe") + struct.pack("<I", 0) + b"\0", "codec can't decode"),
        (header(entries=1) + text(b"general.alignment") + struct.pack("<II", 4, 0), "its alignment is 0"),
        (header(entries=1) + text(b"general.alignment") + struct.pack("<II", 4, 24), "its alignment is 24"),
        (header(tensors=1) + text(b"w") + struct.pack("<I", 1 << 30), "'w' has 1073741824 dimensions"),
        (header(tensors=1) + text(b"w") + struct.pack("<IQQIQ", 2, 1 << 40, 1 << 40, 0, 0), "'w' is of shape"),
        (header(tensors=1) + text(b"w") + struct.pack("<IQQIQ", 2, 0, 4, 0, 0), "'w' is of shape"),
        (header(tensors=1) + text(b"w") + struct.pack("<IQIQ", 1, 8, 0, 1 << 62), "'w' reaches beyond its end"),
        (header(tensors=1) + text(b"w") + struct.pack("<IQIQ", 1, 33, 2, 0) + bytes(99), "no whole blocks of Q4_0"),
        (header(tensors=2) + (text(b"w") + struct.pack("<IQIQ", 1, 1, 0, 0)) * 2 + bytes(99), "'w' is there twice"),
        (header(version=1), "of version 1, which is not read"),
        (header(version=3 << 24), "of the other byte order"),
    ],
)
def test_a_header_that_lies_is_refused_before_memory_is_taken(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(SourceError, match=f"is not a whole GGUF file .*{words}"):
        open_source(tmp_path / "m.gguf")


@pytest.mark.parametrize("kind", [Type.Q8_K, 999])
def test_a_type_without_a_way_back_is_named(kind: int, tmp_path: Path) -> None:
    tensor = text(b"w") + struct.pack("<IQIQ", 1, 256, kind, 0)
    (tmp_path / "m.gguf").write_bytes(header(tensors=1) + tensor + bytes(999))
    with pytest.raises(SourceError, match=r"'w' is of type (Q8_K|number 999), which the gguf package here does not"):
        open_source(tmp_path / "m.gguf")


def test_what_decodes_to_much_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(llama(tmp_path / "m.gguf"))
    monkeypatch.setenv("SPM_COMPRESS_MAX_GIB", "0.0001")
    with pytest.raises(SourceError, match=r"tensor 'token_embd\.weight' would take .* SPM_COMPRESS_MAX_GIB=1"):
        source.read("token_embd.weight")


def test_one_file_of_several_is_not_taken_for_the_model(tmp_path: Path) -> None:
    entry = text(b"split.count") + struct.pack("<IH", 2, 3)
    tensor = text(b"w") + struct.pack("<IQIQ", 1, 1, 0, 0)
    (tmp_path / "m.gguf").write_bytes(header(tensors=1, entries=1) + entry + tensor + bytes(99))
    with pytest.raises(SourceError, match=r"is one of 3 files of a split model; .* llama-gguf-split --merge"):
        open_source(tmp_path / "m.gguf")


def test_a_file_without_tensors_has_nothing_to_compress(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(header())
    with pytest.raises(SourceError, match="holds no tensors"):
        open_source(tmp_path / "m.gguf")


def test_scales_that_are_no_numbers_are_told_by_the_tensors_name(tmp_path: Path) -> None:
    packed = gguf.quants.quantize(matrix(64, 256), Type.Q8_0)
    packed[0, :2] = np.frombuffer(np.float16(np.nan).tobytes(), np.uint8)
    path = write(tmp_path / "m.gguf", {"blk.0.ffn_up.weight": (packed, Type.Q8_0)})
    with pytest.raises(SourceError, match=r"tensor 'blk\.0\.ffn_up\.weight' holds 32 NaN or infinite values"):
        fit_model(open_source(path), QUICK, beside=tmp_path)
