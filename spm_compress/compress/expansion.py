"""Back to dense: the tensors of the original model, with the fitted weights multiplied out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from spm_compress.checkpoint.artifact import Artifact
from spm_compress.checkpoint.entries import as_in_source
from spm_compress.checkpoint.limits import require_room
from spm_compress.checkpoint.tensor_info import DECODED, DTYPES, bias_of
from spm_compress.errors import UsageError

__all__ = ["Expanded", "expand"]


@dataclass(frozen=True)
class Expanded:
    """tensors: every tensor of the original model, by its name, shape and dtype; lost: layers whose change of the bias
    has no place, because the original has no bias there; decoded: tensors that were quantized (GGUF) -> their type
    there, which are float32 now."""

    tensors: Mapping[str, Tensor]
    lost: tuple[str, ...]
    decoded: Mapping[str, str]


def expand(artifact: Artifact) -> Expanded:
    """Return the dense tensors of an artifact; those that were kept are what they were, bit for bit.

    Fitted weights are computed in float32 and rounded to the dtype they had; what was
    quantized stays float32. Raises UsageError for an artifact of an ONNX model, whose weights have other names and
    orders in its file, SourceError for a matrix that would take more memory than `SPM_COMPRESS_MAX_GIB` allows.
    """
    if artifact.source.get("onnx", str(artifact.source["path"]).endswith(".onnx")):
        raise UsageError("the artifact is of an ONNX model; write a dense one with: `export_onnx` `lowering` dense")
    tensors = dict(artifact.tensors)
    lost = []
    for layer in artifact.layers:
        # A low rank of a few bytes may claim any size.
        require_room(Path(artifact.source["path"]), f"the dense {layer.name}", 4 * math.prod(layer.shape))
        dense = layer.operator.to_dense().to(DTYPES.get(layer.dtype, torch.float32))
        tensors.update({name: as_in_source(layer, dense.clone()) for name in layer.names})
        if layer.bias_correction is None:
            continue
        for name in layer.names:
            bias = bias_of(name)
            if bias in artifact.tensors:
                own = artifact.tensors[bias]
                tensors[bias] = (own.float() + layer.bias_correction).to(own.dtype)
            else:
                lost.append(name)
    for name in artifact.source.get("input_first", ()):
        tensors[name] = tensors[name].T
    dtypes = {name: layer.dtype for layer in artifact.layers for name in layer.names}
    dtypes |= {kept.name: kept.dtype for kept in artifact.kept}
    decoded = {name: dtypes[name] for name in sorted(dtypes) if dtypes[name] in DECODED}
    return Expanded({name: tensors[name].contiguous() for name in sorted(tensors)}, tuple(lost), decoded)
