"""Each weight of a fit is read once and digested once."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import pytest
import torch
from made import gaussian, mlp
from safetensors.torch import save_file
from torch import Tensor

from spm_compress import CompressSettings, FitSettings, fit_model, open_source
from spm_compress.checkpoint.source import Source
from spm_compress.compress import weights as room
from spm_compress.compress.weights import Weights
from spm_compress.errors import SourceError

QUICK = FitSettings(stages=4, steps=2, block=8)


@pytest.fixture
def source(tmp_path: Path) -> Source:
    save_file(mlp(40, 64, 64, 48).state_dict(), tmp_path / "model.safetensors")
    return open_source(tmp_path / "model.safetensors")


def counted(source: Source, monkeypatch: pytest.MonkeyPatch) -> tuple[Counter[str], Counter[bytes]]:
    """How often each tensor is read, and each weight digested, from now on."""
    reads: Counter[str] = Counter()
    digests: Counter[bytes] = Counter()
    read, digest = type(source).read, room.digest

    def reading(self: Source, name: str) -> Tensor:
        reads[name] += 1
        return read(self, name)

    def digesting(weight: Tensor) -> str:
        digests[weight.numpy().tobytes()] += 1
        return digest(weight)

    monkeypatch.setattr(type(source), "read", reading)
    monkeypatch.setattr(room, "digest", digesting)
    return reads, digests


@pytest.mark.parametrize("target", [{}, {"budget": 0.4}], ids=["stages", "budget"])
def test_a_fit_reads_and_digests_each_weight_once(
    source: Source, target: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads, digests = counted(source, monkeypatch)
    artifact = fit_model(source, CompressSettings(QUICK, **target), beside=tmp_path)  # type: ignore[arg-type]
    assert artifact.layers
    assert {reads[layer.name] for layer in artifact.layers} == {1}
    assert set(digests.values()) == {1}


def test_what_there_is_no_room_for_is_read_again_and_compared(source: Source) -> None:
    weights = Weights(source, room=0)
    expected = source.read("0.weight").clone()
    weights.digest("0.weight")
    assert torch.equal(weights.read("0.weight"), expected)
    held = Weights(source)
    held.digest("0.weight")
    elsewhere = pickle.loads(pickle.dumps(held))  # as a worker gets it
    save_file({**mlp(40, 64, 64, 48).state_dict(), "0.weight": gaussian(64, 40)}, source.path)
    changed = open_source(source.path)
    for each in (weights, elsewhere):
        each.source = changed
        with pytest.raises(SourceError, match=r"0\.weight changed while the model was being fitted"):
            each.read("0.weight")
