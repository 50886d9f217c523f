"""Folders of models that hold no weights which can be read: what they are instead."""

from __future__ import annotations

from pathlib import Path

from spm_compress.checkpoint.contents import kind_of
from spm_compress.checkpoint.neighbours import ADAPTER
from spm_compress.errors import SourceError

__all__ = ["require_weights"]

_TO_ONNX = "convert it to ONNX with tf2onnx, and name that .onnx file"
# A file or glob that shows what a folder is -> what that is, and what to do.
_SIGNS = (
    ("adapter_config.json", ADAPTER),
    ("adapter_model.*", ADAPTER),
    ("saved_model.pb", f"is a TensorFlow SavedModel; {_TO_ONNX}"),
    ("keras_metadata.pb", f"is a Keras model; {_TO_ONNX}"),
    ("model_index.json", "is a pipeline of several models; name the folder of one of them"),
    ("Manifest.json", "is a Core ML package; name the model that it was made from"),
    ("openvino_model.xml", "is an OpenVINO model; name the model that it was made from"),
    ("tf_model.h5", "holds TensorFlow's weights alone; save the model with save_pretrained() of its PyTorch class"),
    ("flax_model.msgpack", "holds Flax's weights alone; save the model with save_pretrained() of its PyTorch class"),
)
# Models that are named by themselves.
_FILES = ("*.onnx", "onnx/*.onnx", "*.gguf", "*.safetensors", "*.pt2", "*.pt", "*.pth", "*.ckpt", "*.bin")


def require_weights(folder: Path) -> None:
    """Raise SourceError, with what to do, for a folder that is known to be something else than a model's weights."""
    for sign, line in _SIGNS:
        if any(folder.glob(sign)):
            raise SourceError(f"{folder}: {line}")
    if (folder / "model.bin").is_file():
        kind_of(folder / "model.bin")  # says that it is CTranslate2's
    found = [file.relative_to(folder).as_posix() for glob in _FILES for file in sorted(folder.glob(glob))]
    if found:
        more = ", ..." if len(found) > 3 else ""
        raise SourceError(
            f"{folder}: is no folder of one model that is known; name a file in it: {', '.join(found[:3])}{more}"
        )
