"""Tensors that are a part of something else: told by what stands beside them, kept with what to do, never fitted."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, FitSettings, fit_model, open_source
from spm_compress.checkpoint import TensorInfo
from spm_compress.checkpoint.neighbours import parts
from spm_compress.checkpoint.tensor_info import Role
from spm_compress.codecs import parse_bits
from spm_compress.compress import inspect_model
from spm_compress.errors import UsageError

QUICK = CompressSettings(FitSettings(stages=3, steps=2, block=8))
S = (64, 64)
V = (64,)
ADVICE = "compress the model it was quantized from, or dequantize this one first"

# What each method writes for one weight: leaf -> (shape, dtype); the words that every reason of it has; the leaves that
# are matrices and would have been fitted without a word.
PACKED: dict[str, tuple[dict[str, tuple[tuple[int, ...], str]], str]] = {
    "gptq": (
        {"qweight": ((8, 64), "I32"), "scales": (S, "F16"), "qzeros": ((64, 8), "I32"), "g_idx": (V, "I32")},
        "GPTQ",
    ),
    "gptq_of_torch": ({"qweight": ((8, 64), "int32"), "scales": (S, "F16"), "g_idx": (V, "int32")}, "GPTQ"),
    "old_gptq": ({"qweight": ((8, 64), "I32"), "scales": (S, "F16"), "qzeros": ((64, 8), "I32")}, "GPTQ or AWQ"),
    "awq": ({"qweight": ((64, 8), "I32"), "scales": (S, "F16"), "qzeros": ((64, 8), "I32")}, "AWQ"),
    "bnb4": (
        {
            "weight": ((2048, 1), "U8"),
            "weight.absmax": (S, "U8"),
            "weight.quant_map": ((16,), "F32"),
            "weight.nested_absmax": (S, "F32"),
            "weight.nested_quant_map": ((256,), "F32"),
            "weight.quant_state.bitsandbytes__nf4": ((81,), "U8"),
        },
        r"bitsandbytes (4 bits)",
    ),
    "bnb8": ({"weight": (S, "I8"), "SCB": (V, "F32"), "weight_format": ((), "U8")}, "bitsandbytes (int8)"),
    "compressed": (
        {"weight_packed": ((64, 8), "I32"), "weight_scale": (S, "BF16"), "weight_shape": ((2,), "I64")},
        "compressed-tensors",
    ),
    "int8": ({"weight": (S, "I8"), "weight_scale": (S, "F32")}, "scaled integers"),
    "fp8": ({"weight": (S, "F8_E4M3"), "weight_scale_inv": (S, "F32")}, "scaled 8-bit floats (fp8)"),
    "fp8_of_torch": ({"weight": (S, "float8_e4m3fn"), "weight_scale": (S, "F32"), "input_scale": ((), "F32")}, "fp8"),
    "nvfp4": ({"weight": (S, "U8"), "weight_scale": (S, "F8_E4M3"), "weight_scale_2": ((), "F32")}, "scaled integers"),
    "hqq": ({"W_q": (S, "U8"), "scale": (S, "F16"), "zero": (S, "F16"), "shape": ((2,), "I64")}, "HQQ"),
    "mlx": ({"weight": ((64, 8), "U32"), "scales": (S, "F16"), "biases": (S, "F16")}, "MLX"),
    "quanto": ({"weight._data": (S, "I8"), "weight._scale": (S, "F16"), "weight._shift": (S, "F16")}, "quanto"),
    "torchao": ({"weight_qdata": (S, "I8"), "weight_scale": (S, "F32"), "weight_zero_point": (S, "F32")}, "torchao"),
    "mxfp4": ({"proj_blocks": ((2, 64, 16), "U8"), "proj_scales": (S, "U8")}, "MXFP4"),
}
ADAPTERS: dict[str, dict[str, tuple[tuple[int, ...], str]]] = {
    "peft": {"lora_A.weight": (S, "F32"), "lora_B.weight": (S, "F32"), "lora_magnitude_vector": (V, "F32")},
    "peft_named": {"lora_A.default.weight": (S, "F32"), "lora_B.default.weight": (S, "F32")},
    "loralib": {"lora_A": (S, "F32"), "lora_B": (S, "F32")},
    "embedding": {"lora_embedding_A": (S, "F32"), "lora_embedding_B": (S, "F32")},
    "kohya": {
        "lora_down.weight": (S, "F32"),
        "lora_up.weight": (S, "F32"),
        "alpha": ((), "F32"),
        "dora_scale": (S, "F32"),
    },
    "diffusers": {"to_q_lora.down.weight": (S, "F32"), "to_q_lora.up.weight": (S, "F32")},
    "loha": {f"hada_w{i}_{j}": (S, "F32") for i in (1, 2) for j in "ab"},
    "lokr": {"lokr_w1": (S, "F32"), "lokr_w2_a": (S, "F32"), "lokr_w2_b": (S, "F32")},
    "lokr_whole": {"lokr_w1": (S, "F32"), "lokr_w2": (S, "F32")},
    "ia3": {"ia3_l": ((1, 64), "F32")},
}
COMPUTED: dict[str, tuple[dict[str, tuple[tuple[int, ...], str]], str]] = {
    "weight_norm": ({"weight_g": ((64, 1), "F32"), "weight_v": (S, "F32")}, "remove_weight_norm"),
    "weight_norm_of_columns": ({"weight_g": ((1, 64), "F32"), "weight_v": (S, "F32")}, "remove_weight_norm"),
    "weight_norm_whole": ({"weight_g": ((), "F32"), "weight_v": (S, "F32")}, "remove_weight_norm"),
    "of_lstm": ({"weight_hh_l0_g": ((64, 1), "F32"), "weight_hh_l0_v": (S, "F32")}, "remove_weight_norm"),
    "parametrized_norm": (
        {"parametrizations.weight.original0": ((64, 1), "F32"), "parametrizations.weight.original1": (S, "F32")},
        "remove_parametrizations",
    ),
    "orthogonal": (
        {"parametrizations.weight.original": (S, "F32"), "parametrizations.weight.0.base": (S, "F32")},
        "remove_parametrizations",
    ),
    "spectral": ({"weight_orig": (S, "F32"), "weight_u": (V, "F32"), "weight_v": (V, "F32")}, "remove_spectral_norm"),
    "pruned": ({"weight_orig": (S, "F32"), "weight_mask": (S, "F32")}, "prune.remove"),
}
EVERY = {
    **{name: (leaves, words, "dequantize") for name, (leaves, words) in PACKED.items()},
    **{name: (leaves, "adapter", "merge it first") for name, leaves in ADAPTERS.items()},
    **{name: (leaves, words, "bake it in first") for name, (leaves, words) in COMPUTED.items()},
}


def infos(leaves: dict[str, tuple[tuple[int, ...], str]], stem: str) -> dict[str, TensorInfo]:
    return {stem + leaf: TensorInfo(shape, dtype) for leaf, (shape, dtype) in leaves.items()}


OTHERS = {
    "l.bias": TensorInfo(V, "F32"),
    "m.weight": TensorInfo(S, "F32"),
    "norm.weight": TensorInfo(V, "F32"),
    "bias": TensorInfo(V, "F32"),
    "downscales": TensorInfo(S, "F32"),
}


@pytest.mark.parametrize("stem", ["", "l.", "model.layers.0.self_attn.q_proj.", "base_model.model.x."])
@pytest.mark.parametrize("method", EVERY)
def test_every_part_has_a_reason_and_nothing_else_has(method: str, stem: str) -> None:
    leaves, words, advice = EVERY[method]
    found = parts({**OTHERS, **infos(leaves, stem)}, None)
    assert set(found) == {stem + leaf for leaf in leaves}
    assert all(words in reason and advice in reason and "\n" not in reason for reason in found.values())


@pytest.mark.parametrize("method", EVERY)
def test_a_part_without_its_neighbours_is_a_tensor_like_any_other(method: str) -> None:
    leaves, _, _ = EVERY[method]
    named_alone = ("lora_magnitude_vector", "ia3_l")
    for leaf, (shape, dtype) in leaves.items():
        alone = parts({"l." + leaf: TensorInfo(shape, dtype)}, None)
        assert bool(alone) == (leaf in named_alone or leaf == "parametrizations.weight.original"), leaf
        apart = {("l." if each == leaf else "other.") + each: TensorInfo(*leaves[each]) for each in leaves}
        if len(leaves) == 2 and leaf not in named_alone and "parametrizations" not in leaf:
            assert not parts(apart, None), leaf


@given(
    leaves=st.dictionaries(
        st.sampled_from(sorted({leaf for leaves, _, _ in EVERY.values() for leaf in leaves} | {"weight", "bias"})),
        st.tuples(st.sampled_from([S, V, (), (64, 1)]), st.sampled_from(["F32", "I8", "U8", "I32", "F8_E4M3"])),
        max_size=5,
    )
)
def test_any_mix_of_names_has_an_answer_and_a_plain_model_none(leaves: dict[str, tuple[tuple[int, ...], str]]) -> None:
    found = parts(infos(leaves, "l."), None)
    assert set(found) <= {"l." + leaf for leaf in leaves}
    assert not parts({f"l{i}.{leaf}": TensorInfo(S, "F32") for i in range(3) for leaf in ("weight", "bias")}, None)


def test_a_configuration_names_the_method() -> None:
    leaves = infos(PACKED["old_gptq"][0], "l.")
    for said, words in (
        ("awq", "packed by AWQ;"),
        ("gptq", "packed by GPTQ;"),
        ("auto-round", "packed by auto-round;"),
    ):
        found = parts(leaves, {"quantization_config": {"quant_method": said}})
        assert all(words in reason for reason in found.values())
    assert parts(leaves, {"quantization_config": None}).keys() == leaves.keys()


def test_reasons_say_which_part_it_is() -> None:
    found = parts(infos(PACKED["gptq"][0], "l."), None)
    assert found["l.qweight"] == f"packed by GPTQ; {ADVICE}"
    assert found["l.scales"] == f"scales of the weight l.qweight, packed by GPTQ; {ADVICE}"
    assert found["l.qzeros"].startswith("zero points of the weight l.qweight")
    assert parts(infos(COMPUTED["weight_norm"][0], ""), None)["weight_v"] == (
        "a part of the weight-normed weight, g v / |v|; bake it in first (torch.nn.utils.remove_weight_norm) "
        "and save that"
    )


def test_two_matrices_that_are_only_called_alike_are_matrices() -> None:
    assert not parts({"a.weight_g": TensorInfo(S, "F32"), "a.weight_v": TensorInfo(S, "F32")}, None)
    assert not parts({"a.weight": TensorInfo(S, "F32"), "a.weight_scale": TensorInfo(S, "F32")}, None)
    assert not parts({"a.weight": TensorInfo(S, "I32"), "a.scales": TensorInfo(S, "F32")}, None)
    assert not parts({"scales": TensorInfo(S, "F32")}, None)


def test_what_a_graph_says_goes_before_names() -> None:
    leaves = {"weight_g": TensorInfo((64, 1), "F32", Role.OTHER), "weight_v": TensorInfo(S, "F32", Role.MAP)}
    assert not parts(leaves, None)


DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I32": torch.int32, "I64": torch.int64}
DTYPES |= {"I8": torch.int8, "U8": torch.uint8, "U32": torch.uint32, "F8_E4M3": torch.float8_e4m3fn}
DTYPES |= {"int32": torch.int32, "float8_e4m3fn": torch.float8_e4m3fn}


def tensors(leaves: dict[str, tuple[tuple[int, ...], str]], stem: str = "l.") -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {stem + leaf: torch.randn(shape).abs().to(DTYPES[dtype]) for leaf, (shape, dtype) in leaves.items()}


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
@pytest.mark.parametrize("method", EVERY)
def test_a_file_of_nothing_else_is_refused_with_what_to_do(method: str, kind: str, tmp_path: Path) -> None:
    leaves, words, _ = EVERY[method]
    path = tmp_path / f"m.{kind}"
    (torch.save if kind == "pt" else save_file)(tensors(leaves), path)
    begins = f"{path}: is an adapter" if method in ADAPTERS else f"{path}: is "
    for call in (
        lambda: fit_model(open_source(path), QUICK, beside=tmp_path),
        lambda: inspect_model(open_source(path)),
    ):
        with pytest.raises(UsageError) as error:
            call()
        line = str(error.value)
        assert line.startswith(begins)
        assert "\n" not in line
        if method in PACKED:
            assert line == f"{path}: is packed {_how(method)}, and no other weight is left to fit; {ADVICE}"
        elif method in ADAPTERS:
            assert "merge it first, peft: merge_and_unload(), and save that" in line
        else:
            assert words in line


def _how(method: str) -> str:
    if method.startswith("fp8"):
        return "as scaled 8-bit floats (fp8)"
    words = PACKED[method][1]
    return f"as {words}" if words in ("scaled integers", "MXFP4") else f"by {words}"


@pytest.mark.parametrize("method", [name for name in EVERY if name not in ADAPTERS])
def test_beside_a_dense_weight_they_are_left_with_the_reason(method: str, tmp_path: Path) -> None:
    values = {**tensors(EVERY[method][0]), "dense.weight": torch.randn(64, 64)}
    save_file(values, tmp_path / "m.safetensors")
    artifact = fit_model(open_source(tmp_path / "m.safetensors"), QUICK, beside=tmp_path)
    assert [layer.name for layer in artifact.layers] == ["dense.weight"]
    for kept in artifact.kept:
        assert EVERY[method][2] in kept.reason
        assert torch.equal(
            artifact.tensors[kept.name].flatten().view(torch.uint8), values[kept.name].flatten().view(torch.uint8)
        )


@pytest.mark.parametrize("method", EVERY)
def test_no_part_loses_a_digit_to_the_bits_of_what_stays(method: str, tmp_path: Path) -> None:
    """Scales are matrices by shape, and a map that stays beside them gets its bits."""
    values = {**tensors(EVERY[method][0]), "dense.weight": torch.randn(64, 64)}
    if method in ADAPTERS:  # alone it is refused
        values["l.weight"] = torch.ones(64)
    save_file(values, tmp_path / "m.safetensors")
    settings = CompressSettings(QUICK.fit, include=("none",), dense=parse_bits("4"), table=parse_bits("4"))
    artifact = fit_model(open_source(tmp_path / "m.safetensors"), settings, beside=tmp_path)
    assert [layer.name for layer in artifact.layers] == ["dense.weight"]
    assert {kept.name for kept in artifact.kept} == set(values) - {"dense.weight"}


def test_an_adapter_is_refused_even_beside_a_head_that_was_trained_whole(tmp_path: Path) -> None:
    values = {**tensors(ADAPTERS["peft"], "base_model.model.l."), "base_model.model.head.weight": torch.randn(64, 64)}
    save_file(values, tmp_path / "m.safetensors")
    with pytest.raises(UsageError, match="is an adapter"):
        fit_model(open_source(tmp_path / "m.safetensors"), QUICK, beside=tmp_path)


@pytest.mark.parametrize("base", ["l.weight", "l.base_layer.weight"])
def test_an_adapter_beside_its_weight_is_left_and_the_weight_fitted(base: str, tmp_path: Path) -> None:
    save_file({**tensors(ADAPTERS["peft"]), base: torch.randn(64, 64)}, tmp_path / "m.safetensors")
    artifact = fit_model(open_source(tmp_path / "m.safetensors"), QUICK, beside=tmp_path)
    assert [layer.name for layer in artifact.layers] == [base]
    assert all("a part of an adapter" in kept.reason for kept in artifact.kept)


def test_what_is_excluded_is_excluded(tmp_path: Path) -> None:
    save_file(tensors(PACKED["gptq"][0]), tmp_path / "m.safetensors")
    settings = CompressSettings(QUICK.fit, exclude=("l.*",))
    artifact = fit_model(open_source(tmp_path / "m.safetensors"), settings, beside=tmp_path)
    assert {kept.name: kept.reason for kept in artifact.kept}["l.scales"] == "excluded"
    settings = CompressSettings(QUICK.fit, exclude=("l.qzeros",))
    with pytest.raises(UsageError, match="is packed by GPTQ"):
        fit_model(open_source(tmp_path / "m.safetensors"), settings, beside=tmp_path)


def made() -> dict[str, nn.Module]:
    """Modules of torch that compute their weight, made by torch's own functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {
            "new weight_norm": nn.utils.parametrizations.weight_norm(nn.Linear(64, 96)),
            "of columns": nn.utils.parametrizations.weight_norm(nn.Linear(64, 96), dim=1),
            "old weight_norm": nn.utils.weight_norm(nn.Linear(64, 96)),
            "orthogonal": nn.utils.parametrizations.orthogonal(nn.Linear(64, 64)),
            "new spectral_norm": nn.utils.parametrizations.spectral_norm(nn.Linear(64, 96)),
            "old spectral_norm": nn.utils.spectral_norm(nn.Linear(64, 96)),
        }


@pytest.mark.parametrize("is_top", [True, False])
@pytest.mark.parametrize("name", made())
def test_weights_that_torch_computes_are_left(name: str, is_top: bool, tmp_path: Path) -> None:
    module = made()[name]
    state = module.state_dict() if is_top else nn.Sequential(nn.ReLU(), module).state_dict()
    torch.save(state, tmp_path / "m.pt")
    infos = open_source(tmp_path / "m.pt").tensors()
    assert set(parts(infos, None)) == {each for each in state if not each.endswith("bias")}
    with pytest.raises(UsageError, match="bake it in first"):
        fit_model(open_source(tmp_path / "m.pt"), QUICK, beside=tmp_path)


def test_complex_numbers_are_called_complex(tmp_path: Path) -> None:
    values = {"c": torch.ones(64, 64, dtype=torch.complex64), "w": torch.randn(64, 64)}
    values["f"] = torch.ones(64, 64).to(torch.float8_e4m3fn)
    torch.save(values, tmp_path / "m.pt")
    artifact = fit_model(open_source(tmp_path / "m.pt"), QUICK, beside=tmp_path)
    reasons = {kept.name: kept.reason for kept in artifact.kept}
    assert reasons["c"] == "complex64: complex numbers; left as it is"
    assert reasons["f"] == "quantized already (float8_e4m3fn); compress the model it was quantized from"
