"""Text is read with the folder's own tokenizer, whatever special tokens that has, and never with one made up."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from spm_compress import open_source
from spm_compress.calibration.data import read_batches
from spm_compress.calibration.tokenizer import load_tokenizer
from spm_compress.errors import SourceError


@pytest.fixture
def bare(bert: Path, tmp_path: Path) -> Path:
    """A BERT without its tokenizer."""
    folder = tmp_path / "bare"
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(bert / name, folder / name)
    return folder


def words(vocabulary: dict[str, int], **special: str) -> transformers.PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="?" if "?" in vocabulary else "one"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)


@pytest.mark.parametrize("special", [{}, {"unk_token": "?"}, {"eos_token": "two"}, {"pad_token": "three"}])
def test_a_tokenizer_without_pad_or_end_token_pads_what_is_masked(
    bare: Path, tmp_path: Path, special: dict[str, str]
) -> None:
    words({"one": 0, "two": 1, "three": 2, "?": 3}, **special).save_pretrained(bare)
    (tmp_path / "texts.txt").write_text("one\none two three\n")
    (batch,) = read_batches(open_source(bare), tmp_path / "texts.txt")
    assert batch["input_ids"][1].tolist() == [0, 1, 2]
    np.testing.assert_array_equal(batch["attention_mask"], [[1, 0, 0], [1, 1, 1]])


@pytest.mark.parametrize("left", [{}, {"tokenizer_config.json": '{"tokenizer_class": "BertTokenizer"}'}])
def test_a_folder_without_words_holds_no_tokenizer(bare: Path, left: dict[str, str]) -> None:
    for name, text in left.items():
        (bare / name).write_text(text)
    with pytest.raises(SourceError, match=r"holds no tokenizer, which text needs; save the tokenizer beside"):
        load_tokenizer(bare)


def test_a_tokenizer_of_bytes_needs_no_words(bare: Path) -> None:
    transformers.ByT5Tokenizer().save_pretrained(bare)
    assert load_tokenizer(bare)("a")["input_ids"]
