"""What a file is, by what is in it: its name says little, and downloads are often something else.

1. A format that can be read is named as such, whatever the file is called.
2. A known format that cannot be read is named as what it is, with what to do.
3. Where the content says nothing (an empty, damaged or plain text file), the name decides who tries to read it.
"""

from __future__ import annotations

import json
import re
import struct
import zipfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from spm_compress.checkpoint.artifact import ARTIFACT_KEY
from spm_compress.checkpoint.protobuf import fields_of
from spm_compress.errors import SourceError

__all__ = ["Kind", "kind_of", "told_apart"]


class Kind(Enum):
    """A format that can be read, by its name in messages."""

    SAFETENSORS = "a safetensors file"
    TORCH = "a file of torch.save"
    PROGRAM = "a program of torch.export"
    ONNX = "an ONNX model"
    GGUF = "a GGUF file"


@dataclass(frozen=True)
class _Magic:
    """Bytes that a format has at an offset; what it is, and what to do with such a file."""

    offset: int
    magic: bytes
    what: str
    advice: str


_UNPACK = "unpack it and name the model in it"
_TO_ONNX = "convert it to ONNX with tf2onnx, and name that .onnx file"
_TO_GGUF = "convert the original model to GGUF with the present llama.cpp"
_OTHER = "name the model that it was made from"

_MAGIC = (
    _Magic(0, b"\x93NUMPY", "a NumPy array (.npy)", "save the weights by name with safetensors.numpy.save_file"),
    _Magic(0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write them", _TO_ONNX),
    _Magic(4, b"TFL3", "a TensorFlow Lite model", "convert it to ONNX with tf2onnx --tflite, and name that .onnx file"),
    _Magic(4, b"ORTM", "a model in ONNX Runtime's own format (.ort)", "name the .onnx file that it was made from"),
    _Magic(4, b"ET12", "an ExecuTorch program", _OTHER),
    _Magic(0, b"lmgg", "a GGML file, which came before GGUF", _TO_GGUF),
    _Magic(0, b"fmgg", "a GGML file, which came before GGUF", _TO_GGUF),
    _Magic(0, b"tjgg", "a GGML file, which came before GGUF", _TO_GGUF),
    _Magic(0, b"algg", "a LoRA adapter of llama.cpp (GGLA)", "merge it into its model first"),
    _Magic(
        0,
        b"version https://git-lfs.github.com/",
        "a git-lfs pointer, not the file that it stands for",
        "fetch that with: git lfs pull",
    ),
    _Magic(0, b"\x1f\x8b\x08", "a gzip archive", _UNPACK),
    _Magic(0, b"BZh", "a bzip2 archive", _UNPACK),
    _Magic(0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    _Magic(0, b"\x28\xb5\x2f\xfd", "a Zstandard archive", _UNPACK),
    _Magic(0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    _Magic(0, b"Rar!\x1a\x07", "a RAR archive", _UNPACK),
    _Magic(257, b"ustar", "a tar archive", _UNPACK),
    _Magic(0, b"%PDF", "a PDF document", "name the model's weights"),
)
_HEAD = 4096
_PAGE = re.compile(rb"\s*(<!--.*?-->\s*)?<(!doctype\s+html|html|head)\b", re.IGNORECASE | re.DOTALL)
_XML = re.compile(rb"\s*<\?xml\b")
# The binary of a CTranslate2 model: its version, then the length and the name of its specification.
_CTRANSLATE2 = re.compile(rb"[\x01-\x20]\0\0\0.\0[A-Z]\w*\0", re.DOTALL)
_TABLE_ENDING = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
_LONGEST_HEADER = 100_000_000  # of safetensors, by its specification
_PICKLE = re.compile(rb"\x80[\x02-\x05]")


def kind_of(path: Path) -> Kind | None:
    """Return what a file is, None where its content does not say.

    Raises SourceError, with what to do, for a known format that holds no model that can be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(max(0, size - len(_TABLE_ENDING)))
            tail = file.read()
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    if head.startswith(b"GGUF"):
        return Kind.GGUF
    if head.startswith(b"PK\x03\x04"):
        return _in_zip(path)
    if _is_safetensors(head, size):
        return Kind.SAFETENSORS
    for each in _MAGIC:
        if head.startswith(each.magic, each.offset):
            raise _foreign(path, each.what, each.advice)
    text = head.removeprefix(b"\xef\xbb\xbf")
    if _PAGE.match(text):
        raise _foreign(path, "a web page (HTML), not the file that it was to bring", "download the file itself")
    if _XML.match(text):
        if b"<net " in text:
            raise _foreign(path, "the graph of an OpenVINO model", _OTHER)
        raise _foreign(path, "an XML document, perhaps an error of the server", "download the file itself")
    if _CTRANSLATE2.match(head):
        raise _foreign(path, "a CTranslate2 model", _OTHER)
    if _PICKLE.match(head):
        return Kind.TORCH
    if tail == _TABLE_ENDING:
        raise _foreign(path, "the index of a TensorFlow checkpoint", _TO_ONNX)
    if _is_messagepack(head):
        raise _foreign(path, "a MessagePack file, as Flax writes them", "save the weights with safetensors.flax")
    return _in_protobuf(path)


def _foreign(path: Path, what: str, advice: str) -> SourceError:
    return SourceError(f"{path}: is {what}; {advice}")


def _is_safetensors(head: bytes, size: int) -> bool:
    if len(head) < 9:
        return False
    (length,) = struct.unpack("<Q", head[:8])
    return 2 <= length <= min(_LONGEST_HEADER, size - 8) and head[8:9] == b"{"


def _is_messagepack(head: bytes) -> bool:
    """Whether it is a map whose first key is a word."""
    at = 1 if head[:1] and 0x81 <= head[0] <= 0x8F else 3 if head[:1] == b"\xde" else len(head)
    length = head[at] & 0x1F if len(head) > at and head[at] & 0xE0 == 0xA0 else 0
    return bool(re.fullmatch(rb"[\w./-]{2,}", head[at + 1 : at + 1 + length])) and len(head) > at + length


def _in_zip(path: Path) -> Kind | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception:  # zipfile raises many types for damaged archives
        return None
    inner = {name.partition("/")[2] for name in names}
    if "archive_format" in inner:
        return Kind.PROGRAM
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        raise _foreign(
            path,
            "a TorchScript program (torch.jit.save), which is code and is not loaded",
            f"save its weights with: torch.save(torch.jit.load({path.name!r}).state_dict(), 'weights.pt')",
        )
    if "data.pkl" in inner:
        return Kind.TORCH
    if "model.weights.h5" in names:
        raise _foreign(path, "a Keras model", _TO_ONNX)
    if names and all(name.endswith(".npy") for name in names):
        raise _foreign(path, "a NumPy archive (.npz)", "save the weights with safetensors.numpy.save_file")
    shown = ", ".join(repr(name) for name in names[:3])
    raise _foreign(path, f"a zip archive of {shown or 'nothing'}{', ...' if len(names) > 3 else ''}", _UNPACK)


def _in_protobuf(path: Path) -> Kind | None:
    """Tell ONNX, TensorFlow and Core ML apart, none of which begins with bytes of its own."""
    found = fields_of(path)
    if found is None:
        return None
    kinds = {(field.number, field.is_bytes) for field in found}
    numbers = {field.number for field in found}
    if {(1, False), (7, True)} <= kinds and max(numbers) <= 30:
        return Kind.ONNX
    if (1, False) in kinds and (2, True) in kinds and max(numbers) >= 200:
        raise _foreign(path, "a Core ML model", _OTHER)
    if kinds == {(1, False), (2, True)} and found[0].value == 1:
        raise _foreign(path, "a TensorFlow SavedModel", f"{_TO_ONNX} (tf2onnx takes the folder)")
    if (1, True) in kinds and numbers <= {1, 2, 3, 4, 5} and found[0].begins_with_text:
        raise _foreign(path, "a TensorFlow graph (GraphDef)", _TO_ONNX)
    return None


def told_apart(path: Path) -> str | None:
    """Return in words what a file or folder is by its content, None for what may be an ONNX model."""
    if path.is_dir():
        if next(path.glob("*.onnx"), None) is not None:
            return "is a folder; name the .onnx file in it"
        return "is a folder without an .onnx file; fit and export its model: `export_onnx`"
    with path.open("rb") as file:
        start = file.read(8)
        if start[:4] == b"PK\x03\x04":
            return "is an archive, as torch.save and torch.export write them, and no ONNX model; export the model first"
        if start[4:8] == b"ORTM":
            return "is in ONNX Runtime's own format, whose graph is not read here; give the .onnx file it was made of"
        header = int.from_bytes(start, "little")
        if not 2 <= header <= path.stat().st_size - 8 or file.read(1) != b"{":
            return None
        try:
            metadata = json.loads(b"{" + file.read(header - 1)).get("__metadata__", {})
        except (ValueError, RecursionError):
            return None
    if ARTIFACT_KEY in metadata:
        return f"is an artifact; export it first: `export_onnx` {path}"
    return "holds tensors without a graph; fit it and export what comes out: `export_onnx`"
