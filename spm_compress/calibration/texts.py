"""Texts in a folder that Hugging Face datasets saved."""

from __future__ import annotations

from pathlib import Path

from spm_compress.errors import SourceError, first_line
from spm_compress.quiet import quiet

__all__ = ["dataset_texts"]


def dataset_texts(folder: Path) -> list[str]:
    """Return the first column of strings of a dataset (`save_to_disk`), of its split `train` if it has several.

    Raises SourceError where the library is missing, the folder is no dataset, or it has no such column.
    """
    try:
        with quiet():
            from datasets import DatasetDict, Value, load_from_disk
    except ImportError as error:
        raise SourceError(
            f"{folder}: a folder of datasets is read by datasets; install it with: pip install 'spm-compress[hf]'"
        ) from error
    try:
        with quiet():
            found = load_from_disk(str(folder))
    except Exception as error:  # it raises many types for what is missing in a folder
        raise SourceError(
            f"{folder}: is no folder that datasets saved ({first_line(error)}); save one with save_to_disk, "
            "or give a .txt of one text a line"
        ) from error
    if isinstance(found, DatasetDict):
        found = found["train"] if "train" in found else next(iter(found.values()))
    column = next((name for name, kind in found.features.items() if kind == Value("string")), None)
    if column is None:
        raise SourceError(f"{folder}: has no column of text, but {', '.join(found.features)}; add one")
    return [text or "" for text in found[column]]
