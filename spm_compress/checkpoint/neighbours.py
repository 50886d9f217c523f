"""Tensors that are a part of something else, by the tensors beside them: packed weights, adapters, parametrizations.

A state dict says nothing of what its tensors are for, and a matrix of scales looks like any other matrix. So names
count together with their neighbours only:

1. Packed weights: integers or 8-bit floats beside their scales, as each method names them. No matrix of numbers.
2. Adapters: factors of what is added to another weight (LoRA and its relatives).
3. Parametrizations: the weight is computed from these tensors (weight norm, spectral norm, pruning and torch's own).

A tensor of which a graph says what it is for is left to the graph.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from spm_compress.checkpoint.quantized import DEQUANTIZE, methods
from spm_compress.checkpoint.tensor_info import TensorInfo

__all__ = ["ADAPTER", "parts", "refusal"]

Infos = Mapping[str, TensorInfo]
Found = Iterator[tuple[str, str]]

ADAPTER = (
    "is an adapter (LoRA or the like) of another model; merge it first, peft: merge_and_unload(), and save that model"
)
_COMPUTED = re.compile(r"\bpart of the ([\w-]+ed) ")
_ROLES = {
    "absmax": "scales",
    "weight_scale": "scales",
    "weight_scale_inv": "scales",
    "scale_weight": "scales",
    "scale": "scales",
    "_scale": "scales",
    "scales": "scales",
    "SCB": "scales",
    "qzeros": "zero points",
    "zero": "zero points",
    "biases": "offsets",
    "g_idx": "the order of inputs",
    "weight_shape": "the shape",
}


def parts(tensors: Infos, config: Mapping[str, Any] | None) -> dict[str, str]:
    """Return name -> reason for every tensor that is a part of something else, and so no weight matrix of its own.

    config: the Hugging Face config.json, whose quantization_config may name the method.
    """
    known = {name: info for name, info in tensors.items() if info.role is None}
    found: dict[str, str] = {}
    for name in known:
        for rule in _RULES:
            for part, reason in rule(known, name, config):
                found.setdefault(part, reason)
    return {name: found[name] for name in tensors if name in found}


def refusal(tensors: Infos, found: Mapping[str, str], kept: Mapping[str, str], *, is_any_left: bool) -> str | None:
    """Return why a whole file is not fitted, None if it can be; found: its `parts`; kept: reasons of all that stay.

    is_any_left: whether a weight is selected. An adapter is refused even then: without the weights that it belongs to
    (beside modules that were trained whole) it is no model.
    """
    adapted = [name for name, reason in found.items() if reason.startswith("a part of an adapter")]
    if adapted and not any(_has_base(tensors, name) for name in adapted):
        return ADAPTER
    quantized = [how.partition("; ") for how in methods(kept)]
    if is_any_left or not (found or quantized):
        return None
    if quantized:
        how = " and ".join(each for each, _, _ in quantized)
        return f"is {how}, and no other weight is left to fit; {quantized[0][2]}"
    reason = next(iter(found.values()))
    computed = _COMPUTED.search(reason)
    if computed is None:
        return f"no weight is left to fit ({reason})"
    return f"is {computed.group(1)}, and no weight is left to fit as it is; {reason.partition('; ')[2]}"


# --- packed weights


def _packed(how: str, main: str, tensors: Infos, names: Iterator[str]) -> Found:
    yield main, f"packed {how}; {DEQUANTIZE}"
    for name in names:
        if name in tensors and name != main:
            role = _ROLES.get(_leaf(name), "a part")
            yield name, f"{role} of the weight {main}, packed {how}; {DEQUANTIZE}"


def _gptq(tensors: Infos, name: str, config: Mapping[str, Any] | None) -> Found:
    """GPTQ packs rows and keeps an order of inputs, AWQ packs columns; old GPTQ files lack the order."""
    if _leaf(name) != "qweight" or _beside(name, "scales") not in tensors:
        return
    said = str(((config or {}).get("quantization_config") or {}).get("quant_method", "")).lower()
    scales = tensors[_beside(name, "scales")].shape
    if said:
        by = {"gptq": "GPTQ", "awq": "AWQ"}.get(said, said)
    elif _beside(name, "g_idx") in tensors:
        by = "GPTQ"
    else:
        by = "GPTQ or AWQ" if tensors[name].shape[-1:] == scales[-1:] else "AWQ"
    yield from _packed(f"by {by}", name, tensors, (_beside(name, each) for each in ("scales", "qzeros", "g_idx")))


_BITSANDBYTES = (
    *("absmax", "quant_map", "nested_absmax", "nested_quant_map", "nested_offset"),
    *("quant_state.bitsandbytes__nf4", "quant_state.bitsandbytes__fp4"),
)


def _bitsandbytes(tensors: Infos, name: str, config: Mapping[str, Any] | None) -> Found:
    del config
    if _leaf(name) == "absmax":
        main = name.removesuffix(".absmax")
        state = [f"{main}.{each}" for each in _BITSANDBYTES]
        if main in tensors and any(each in tensors for each in state[1:]):
            yield from _packed("by bitsandbytes (4 bits)", main, tensors, iter(state))
    if _leaf(name) == "SCB" and _is(tensors, _beside(name, "weight"), "int8", "i8"):
        names = (name, _beside(name, "weight_format"))
        yield from _packed("by bitsandbytes (int8)", _beside(name, "weight"), tensors, iter(names))


def _scaled(tensors: Infos, name: str, config: Mapping[str, Any] | None) -> Found:
    """Compressed-tensors, fp8 and int8: `weight_packed`, or a `weight` of a narrow type, beside its scale."""
    del config
    leaf = _leaf(name)
    others = (
        *("weight_scale", "weight_scale_inv", "scale_weight", "weight_scale_2", "weight_global_scale", "weight_shape"),
        *("weight_zero_point", "weight_g_idx", "input_scale", "scale_input", "input_global_scale", "output_scale"),
    )
    names = (_beside(name, each) for each in others)
    if leaf == "weight_packed" and _beside(name, "weight_scale") in tensors:
        yield from _packed("by compressed-tensors", name, tensors, names)
    is_scaled = any(_beside(name, each) in tensors for each in others[:3])
    if leaf == "weight" and is_scaled and not tensors[name].is_floating:
        how = "as scaled 8-bit floats (fp8)" if _is(tensors, name, "f8", "float8") else "as scaled integers"
        yield from _packed(how, name, tensors, names)
    if leaf == "weight" and _is(tensors, name, "u32", "uint32") and _beside(name, "scales") in tensors:
        yield from _packed("by MLX", name, tensors, (_beside(name, each) for each in ("scales", "biases")))


def _hqq(tensors: Infos, name: str, config: Mapping[str, Any] | None) -> Found:
    del config
    if _leaf(name) == "W_q" and {_beside(name, "scale"), _beside(name, "zero")} <= set(tensors):
        others = ("scale", "zero", "nbits", "group_size", "shape", "axis", "packing", "view_as_float", "quant_scale")
        yield from _packed("by HQQ", name, tensors, (_beside(name, each) for each in others))


def _subclasses(tensors: Infos, name: str, config: Mapping[str, Any] | None) -> Found:
    """Inner tensors of what quanto and torchao put in the place of a weight, and blocks of MXFP4."""
    del config
    if _leaf(name) == "_data" and _beside(name, "_scale") in tensors:
        yield from _packed("by quanto", name, tensors, (_beside(name, each) for each in ("_scale", "_shift")))
    if (match := re.fullmatch(r"(.*)([_:.])qdata", name)) and (scale := f"{match[1]}{match[2]}scale") in tensors:
        yield from _packed("by torchao", name, tensors, iter((scale, f"{match[1]}{match[2]}zero_point")))
    if name.endswith("_blocks") and not tensors[name].is_floating:
        scales = f"{name.removesuffix('_blocks')}_scales"
        yield from _packed("as MXFP4", name, tensors, iter((scales,))) if scales in tensors else ()


# --- adapters

# A part of a name -> those of which one has to stand in the same place of another name.
_ADAPTERS: Mapping[str, tuple[str, ...]] = {
    "lora_A": ("lora_B",),
    "lora_B": ("lora_A",),
    "lora_embedding_A": ("lora_embedding_B",),
    "lora_embedding_B": ("lora_embedding_A",),
    "lora_down": ("lora_up",),
    "lora_up": ("lora_down",),
    "hada_w1_a": ("hada_w1_b",),
    "hada_w1_b": ("hada_w1_a",),
    "hada_w2_a": ("hada_w2_b",),
    "hada_w2_b": ("hada_w2_a",),
    "hada_t1": ("hada_w1_a",),
    "hada_t2": ("hada_w2_a",),
    "lokr_w1": ("lokr_w2", "lokr_w2_a"),
    "lokr_w1_a": ("lokr_w1_b",),
    "lokr_w1_b": ("lokr_w1_a",),
    "lokr_w2": ("lokr_w1", "lokr_w1_a"),
    "lokr_w2_a": ("lokr_w2_b",),
    "lokr_w2_b": ("lokr_w2_a",),
    "lokr_t2": ("lokr_w2_a",),
    "lora_E": ("lora_A",),
    "vera_lambda_b": ("vera_lambda_d",),
    "vera_lambda_d": ("vera_lambda_b",),
}
# Two words, as diffusers names them: `to_q_lora.down.weight`, `lora_linear_layer.up.weight`.
_DOWN_UP = re.compile(r"(.*lora\w*)\.(down|up)(\..*)?")
# Names that nothing else has, with no neighbour of their own.
_ALONE = re.compile(r"(^|\.)(lora_magnitude_vector|ia3_l|oft_r|boft_R|boft_s|vera_A|vera_B)(\.|$)")
_IN_ADAPTER = re.compile(r"\.?\b(lora_\w+|hada_\w+|lokr_\w+|ia3_l|b?oft_\w+|vera_\w+)\b.*|\.?\w*lora\w*\.(down|up)\b.*")


def _adapter(tensors: Infos, name: str, config: Mapping[str, Any] | None) -> Found:
    del config
    words = name.split(".")
    reason = "a part of an adapter of another weight; merge it first (peft: merge_and_unload()) and save that model"
    for i, word in enumerate(words):
        others = (".".join((*words[:i], each, *words[i + 1 :])) for each in _ADAPTERS.get(word, ()))
        if any(other in tensors for other in others):
            yield name, reason
            beside = (_joined(".".join(words[:i]), each) for each in ("alpha", "dora_scale"))
            yield from ((each, reason) for each in beside if each in tensors)
    match = _DOWN_UP.fullmatch(name)
    other = match and f"{match[1]}.{'up' if match[2] == 'down' else 'down'}{match[3] or ''}"
    if other in tensors or _ALONE.search(name):
        yield name, reason


def _has_base(tensors: Infos, name: str) -> bool:
    """Whether the weight that an adapter belongs to stands in the same file."""
    stem = _IN_ADAPTER.sub("", name)
    return any(_joined(stem, each) in tensors for each in ("base_layer.weight", "weight", "base_layer.qweight"))


# --- parametrizations

_OF_TORCH = re.compile(r"(^|.*\.)parametrizations\.([^.]+)\.(original\d*|\d+\..+)")
_REMOVE = "bake it in first (torch.nn.utils.parametrize.remove_parametrizations) and save that"


def _parametrized(tensors: Infos, name: str, config: Mapping[str, Any] | None) -> Found:
    del config
    match = _OF_TORCH.fullmatch(name)
    if match is None:
        return
    stem = f"{match[1]}parametrizations.{match[2]}."
    g, v = (tensors.get(f"{stem}original{i}") for i in (0, 1))
    if f"{stem}original" not in tensors and (g is None or v is None):
        return
    if g is not None and v is not None and _is_norm_of(g.shape, v.shape):
        yield name, f"a part of the weight-normed {match[1]}{match[2]}, g v / |v|; {_REMOVE}"
    else:
        yield name, f"a part of the parametrized {match[1]}{match[2]}, which is computed from it; {_REMOVE}"


def _normed(tensors: Infos, name: str, config: Mapping[str, Any] | None) -> Found:
    """The older functions of torch: weight_norm, spectral_norm and prune."""
    del config
    leaf = _leaf(name)
    if match := re.fullmatch(r"(weight\w*)_v", leaf):
        g = _beside(name, f"{match[1]}_g")
        if g in tensors and _is_norm_of(tensors[g].shape, tensors[name].shape):
            weight = _beside(name, match[1])
            for each in (g, name):
                yield (
                    each,
                    f"a part of the weight-normed {weight}, g v / |v|; bake it in first "
                    "(torch.nn.utils.remove_weight_norm) and save that",
                )
    if match := re.fullmatch(r"(\w+)_orig", leaf):
        weight = _beside(name, match[1])
        if f"{weight}_u" in tensors:
            for each in (name, f"{weight}_u", f"{weight}_v"):
                yield (
                    each,
                    f"a part of the spectral-normed {weight}; bake it in first "
                    "(torch.nn.utils.remove_spectral_norm) and save that",
                )
        if f"{weight}_mask" in tensors:
            for each in (name, f"{weight}_mask"):
                yield (
                    each,
                    f"a part of the pruned {weight}; bake it in first (torch.nn.utils.prune.remove) and save that",
                )


def _is_norm_of(g: tuple[int, ...], v: tuple[int, ...]) -> bool:
    """Whether g can be the norms of v: one number, or one for every slice along an axis."""
    if not g:
        return True
    return len(g) == len(v) and all(a in (1, b) for a, b in zip(g, v, strict=True)) and sum(a > 1 for a in g) <= 1


_Rule = Callable[[Infos, str, "Mapping[str, Any] | None"], Found]
_RULES: tuple[_Rule, ...] = (
    *(_gptq, _bitsandbytes, _scaled, _hqq, _subclasses),
    *(_adapter, _parametrized, _normed),
)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]


def _joined(stem: str, leaf: str) -> str:
    return f"{stem}.{leaf}" if stem else leaf


def _beside(name: str, leaf: str) -> str:
    """Return the name of a tensor of the same module, which may be the top one."""
    return _joined(name.rpartition(".")[0], leaf)


def _is(tensors: Infos, name: str, *types: str) -> bool:
    return name in tensors and tensors[name].dtype.lower().startswith(types)
