"""Floor 2: models and artifacts on disk."""

from spm_compress.checkpoint.artifact import (
    SUFFIX,
    Artifact,
    FittedLayer,
    KeptTensor,
    find_artifact,
    read_artifact,
    write_artifact,
)
from spm_compress.checkpoint.artifact_source import source_files, source_of
from spm_compress.checkpoint.factory_source import import_function
from spm_compress.checkpoint.files import write_tensors
from spm_compress.checkpoint.modules import is_bare, is_live, load_module
from spm_compress.checkpoint.outputs import keep_apart, require_file_name
from spm_compress.checkpoint.quantized import left_out
from spm_compress.checkpoint.source import Source, files_of, key_of, open_source
from spm_compress.checkpoint.tensor_info import TensorInfo

__all__ = [
    "SUFFIX",
    "Artifact",
    "FittedLayer",
    "KeptTensor",
    "Source",
    "TensorInfo",
    "files_of",
    "find_artifact",
    "import_function",
    "is_bare",
    "is_live",
    "keep_apart",
    "key_of",
    "left_out",
    "load_module",
    "open_source",
    "read_artifact",
    "require_file_name",
    "source_files",
    "source_of",
    "write_artifact",
    "write_tensors",
]
