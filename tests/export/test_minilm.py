"""End to end on all-MiniLM-L6-v2, through the command line, with few steps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from running import spm

from spm_compress import apply_artifact, read_artifact

SENTENCES = ["A man is eating food.", "The girl is carrying a baby, and she smiles.", "Shares fell."]


def command(*arguments: str | Path, cwd: Path) -> dict[str, object]:
    done = spm(*map(str, arguments), "--json", cwd=cwd)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


@pytest.mark.xdist_group("minilm")
def test_minilm_in_onnx_runtime_equals_minilm_in_torch_with_spm_layers(minilm: Path, tmp_path: Path) -> None:
    report = command(
        "fit", minilm, "--include", "encoder.layer.[05].*", "--steps", "4", "-o", "m.spm.safetensors", cwd=tmp_path
    )
    assert report["fitted"]["layers"] == 12  # type: ignore[index]
    exported = command("export", "--onnx", "out.onnx", cwd=tmp_path)
    (file,) = exported["files"]  # type: ignore[misc]
    assert len(file["nodes"]) == 12
    assert file["missing"] == []

    transformers = pytest.importorskip("transformers")
    tokenizer = transformers.AutoTokenizer.from_pretrained(minilm)
    model = transformers.AutoModel.from_pretrained(minilm).eval()
    apply_artifact(model, read_artifact(tmp_path / "m.spm.safetensors"))
    session = onnxruntime.InferenceSession(tmp_path / "out.onnx", providers=["CPUExecutionProvider"])
    for texts in (SENTENCES, SENTENCES[:1], ["a"]):  # dynamic batch and sequence, down to 1 x 3 tokens
        tokens = tokenizer(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            expected = model(**tokens).last_hidden_state.numpy()
        (found,) = session.run(["last_hidden_state"], {name: value.numpy() for name, value in tokens.items()})
        assert found.shape == expected.shape
        assert np.linalg.norm(found - expected) < 1e-4 * np.linalg.norm(expected)
