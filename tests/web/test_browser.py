"""The exported MiniLM in headless Chromium gives the embeddings that it gives in Python.

Run by `make test-web`, which puts what npm has to install beside the example first.
"""

from __future__ import annotations

import functools
import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLE = ROOT / "examples" / "browser"
SENTENCES = [
    "A man is eating food.",
    "Someone plays a string instrument, beautifully!",
    "Shares dropped 3.5% when the news was published.",
    "Straße, naïve café and 北京: accents and other scripts.",
]


FITS = {
    "stages": "--include encoder.* --steps 20",
    "few bits": "--include encoder.layer.0.* --steps 20 --bits 8 --dense-bits 4/32 --table-bits 4",
}


@pytest.fixture(scope="module", params=FITS.values(), ids=FITS)
def model(minilm: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with the exported model and its tokenizer; the fit is short, as any numbers will do."""
    folder = tmp_path_factory.mktemp("model")
    command = [sys.executable, "-m", "spm_compress_cli"]
    for arguments in (
        ["fit", str(minilm), *request.param.split(), "-o", "minilm.spm.safetensors", "--quiet"],
        ["export", "--onnx", "model.onnx", "--batch", "1,4", "--sequence", "16", "--activations", "float32"],
    ):
        subprocess.run([*command, *arguments], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(minilm / name, folder)
    return folder


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def site(model: Path, tmp_path: Path) -> Iterator[str]:
    """The example as the README serves it: its files, node_modules and model/ in one folder."""
    assert (EXAMPLE / "node_modules").is_dir(), "run make test-web, which installs what npm has to"
    for file in EXAMPLE.iterdir():
        (tmp_path / file.name).symlink_to(file)
    (tmp_path / "model").symlink_to(model)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    server.server_close()


def in_python(model: Path) -> np.ndarray:
    tokenizers = pytest.importorskip("tokenizers")
    sys.path.insert(0, str(ROOT / "examples"))
    from sentences import embed

    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_padding()
    encoded = tokenizer.encode_batch(SENTENCES)
    length = max(len(each) for each in encoded)
    arrays = {
        name: np.array([getattr(each, part) + [0] * (length - len(each)) for each in encoded], np.int64)
        for name, part in (("input_ids", "ids"), ("attention_mask", "attention_mask"), ("token_type_ids", "type_ids"))
    }
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    names = {each.name for each in session.get_inputs()}
    feed = {name: array for name, array in arrays.items() if name in names}
    (features,) = session.run(["last_hidden_state"], feed)
    return np.asarray(embed(features, arrays["attention_mask"]))


def test_the_page_embeds_as_python_does_and_asks_nobody_else(site: str, model: Path, chromium: str) -> None:
    done = subprocess.run(
        ["node", EXAMPLE / "open_page.mjs", chromium, site, json.dumps(SENTENCES)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["errors"] == []
    assert all(url.startswith((site, "data:", f"blob:{site}")) for url in seen["requests"])
    assert "MB" in seen["status"]
    assert seen["cells"] == 1 + 2 + 3 + 4, "the similarities of the four sentences on the page"
    found, expected = np.array(seen["embeddings"]), in_python(model)
    assert found.shape == expected.shape
    print(f"largest difference of an embedding's entry: {np.abs(found - expected).max():.1e}; page: {seen['status']}")
    assert np.abs(found - expected).max() < 1e-4
