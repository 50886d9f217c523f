"""Calibration data: files of named model inputs, or of text, as batches."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from spm_compress.calibration.texts import dataset_texts
from spm_compress.calibration.tokenizer import load_tokenizer
from spm_compress.checkpoint.limits import require_room
from spm_compress.checkpoint.source import Source
from spm_compress.errors import SourceError, UsageError, first_line, near_misses
from spm_compress.quiet import quiet

__all__ = ["Batch", "check_names", "read_batches"]

Batch = Mapping[str, np.ndarray]

_BATCH = 16
_FORMATS = "give a .npz or .safetensors of named model inputs, a .txt of one text a line, or a folder of datasets"
# A tokenizer that knows no limit says 10**30.
_LONGEST = 512


def read_batches(source: Source, data: Path, size: int | None = None, longest: int | None = None) -> list[Batch]:
    """Return the batches of a file: name -> array whose first axis is the samples.

    data: .npz or .safetensors of named inputs; or, for a Hugging Face folder with its tokenizer, .txt (UTF-8, one text
    a line, blank lines skipped) or a folder that Hugging Face datasets saved, of which the first column of strings is
    taken. size: samples a batch; longest: tokens of a text, the rest is cut off.
    Raises SourceError or UsageError for data that is missing, damaged, empty, of another format, or not finite.
    """
    if data.is_dir():
        return _text_batches(source, data, dataset_texts(data), size, longest)
    if not data.is_file():
        beside = [path.name for path in data.parent.iterdir()] if data.parent.is_dir() else []
        raise SourceError(f"{data}: no such calibration file{near_misses(data.name, beside)}")
    if data.suffix == ".txt":
        return _text_batches(source, data, _lines(data), size, longest)
    if data.suffix not in (".npz", ".safetensors"):
        raise UsageError(f"{data}: not a format of calibration data; {_FORMATS}")
    arrays = _arrays(data)
    counts = {name: array.shape[0] if array.ndim else 0 for name, array in arrays.items()}
    if not arrays or not all(counts.values()):
        empty = next((name for name, count in counts.items() if not count), None)
        what = f"input {empty!r} has no samples" if empty else "holds no inputs"
        raise SourceError(f"{data}: {what}; the first axis of every array is the samples")
    if len(set(counts.values())) > 1:
        raise SourceError(f"{data}: its inputs have different numbers of samples ({counts}); make them equal")
    for name, array in arrays.items():
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise SourceError(f"{data}: input {name!r} holds NaN or infinite values; remove those samples")
    samples = next(iter(counts.values()))
    step = size or _BATCH
    return [{name: array[i : i + step] for name, array in arrays.items()} for i in range(0, samples, step)]


def check_names(batches: Sequence[Batch], data: Path, known: Sequence[str], required: Sequence[str]) -> None:
    """Raise UsageError for an input that the model does not have, or one that it needs and the data lacks."""
    for name in batches[0]:
        if name not in known:
            raise UsageError(
                f"{data}: the model has no input {name!r}{near_misses(name, known)}; its inputs: {', '.join(known)}"
            )
    missing = [name for name in required if name not in batches[0]]
    if missing:
        raise UsageError(f"{data}: lacks the input {', '.join(map(repr, missing))} that the model needs")


def _arrays(data: Path) -> dict[str, np.ndarray]:
    try:
        if data.suffix == ".safetensors":
            return load_file(data)
        with zipfile.ZipFile(data) as archive:
            require_room(data, "what it unpacks to", sum(each.file_size for each in archive.infolist()))
        with np.load(data, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (SafetensorError, zipfile.BadZipFile, OSError, ValueError, EOFError, KeyError) as error:
        raise SourceError(f"{data}: cannot be read as {data.suffix} ({first_line(error)}); {_FORMATS}") from error


def _lines(data: Path) -> list[str]:
    try:
        return data.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise SourceError(f"{data}: is not UTF-8 text ({error.reason} at byte {error.start}); convert it") from error


def _text_batches(
    source: Source, data: Path, lines: Sequence[str], size: int | None, longest: int | None
) -> list[Batch]:
    if source.config is None:
        raise UsageError(
            f"{data}: text needs the tokenizer of a Hugging Face folder, which {source.path} is not; "
            "give the model's named inputs as .npz or .safetensors"
        )
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise SourceError(f"{data}: holds no text; give one text a line")
    tokenizer = load_tokenizer(source.path)
    most = min(int(tokenizer.model_max_length), int(source.config.get("max_position_embeddings", _LONGEST)))
    step = size or _BATCH
    with quiet():  # a tokenizer advises against padding afterwards
        tokens = tokenizer(texts, truncation=True, max_length=min(most, longest or most))
        # Texts of one length share a batch, so that little of it is padding; of those, neighbours in the file.
        lengths = [len(ids) for ids in next(iter(tokens.values()))]
        if not any(lengths):
            raise SourceError(f"{source.path}: its tokenizer makes no tokens of {data}; save the model's own beside it")
        order = sorted(range(len(texts)), key=lengths.__getitem__)
        batches: list[Batch] = []
        for i in range(0, len(order), step):
            chosen = {name: [each[j] for j in order[i : i + step]] for name, each in tokens.items()}
            padded = tokenizer.pad(chosen, padding=True, return_tensors="np")
            batches.append({name: np.asarray(array) for name, array in padded.items()})
    return batches
