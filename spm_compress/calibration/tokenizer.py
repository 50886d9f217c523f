"""The tokenizer that a Hugging Face folder holds, and none where it holds none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from spm_compress.errors import SourceError, first_line
from spm_compress.quiet import quiet

__all__ = ["load_tokenizer"]

# Files that say what the tokens are; tokenizer_config.json alone does for tokenizers of bytes, which have no words.
_VOCABULARIES = ("tokenizer.json", "vocab*", "*.model", "*.tiktoken", "tekken.json", "merges.txt")
_CONFIG = "tokenizer_config.json"


def load_tokenizer(folder: Path) -> Any:
    """Return it, able to pad. No code from the folder is run.

    Raises SourceError for a folder without one: transformers makes one up then, which knows no words.
    """
    has_words = any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES)
    missing = SourceError(
        f"{folder}: holds no tokenizer, which text needs; save the tokenizer beside the model, or give the model's "
        "named inputs as .npz or .safetensors"
    )
    if not has_words and not (folder / _CONFIG).exists():
        raise missing
    try:
        with quiet():
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except ImportError as error:
        raise SourceError(
            f"{folder}: reading text needs transformers; install it with: pip install 'spm-compress[hf]'"
        ) from error
    except Exception as error:  # transformers raises many types for what is missing in a folder
        raise SourceError(
            f"{folder}: its tokenizer cannot be loaded ({first_line(error)}); check the folder"
        ) from error
    if not has_words and tokenizer.vocab_files_names:
        raise missing
    if tokenizer.pad_token is None:
        # Any token will do: what is padded is masked.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer
