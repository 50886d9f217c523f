"""Checkpoints of torch.save: every form that is in use, and everything that is refused."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, read_artifact, write_artifact
from spm_compress.checkpoint.huggingface import load_huggingface
from spm_compress.errors import SourceError


def values() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "a.weight": torch.randn(48, 64, generator=draw),
        "a.bias": torch.randn(48, generator=draw).bfloat16(),
        "b.weight": torch.randn(64, 48, generator=draw, dtype=torch.float64).T,  # not contiguous
        "steps": torch.tensor(7),
    }


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    "nest",
    [
        lambda state: state,
        lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"state": {}}},
        lambda state: {"model": state},
        lambda state: {"model": {"state_dict": state}},
    ],
)
def test_a_state_dict_is_found_in_both_formats(nest: Callable[[object], object], new: bool, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(nest(values()), path, _use_new_zipfile_serialization=new)
    source = open_source(path)
    assert {name: (info.shape, info.dtype) for name, info in source.tensors().items()} == {
        "a.weight": ((48, 64), "F32"),
        "a.bias": ((48,), "BF16"),
        "b.weight": ((48, 64), "F64"),
        "steps": ((), "int64"),
    }
    for name, value in values().items():
        assert torch.equal(source.read(name), value)
        assert source.place(name) == path
    assert set(source.hashes()) == {"model.pt"}


def test_a_checkpoint_is_fitted_as_its_safetensors_are(tmp_path: Path) -> None:
    save_file({name: value.contiguous() for name, value in values().items()}, tmp_path / "model.safetensors")
    torch.save(values(), tmp_path / "model.pth")
    settings = CompressSettings(fit=FitSettings(stages=3, steps=5))
    sources = [open_source(tmp_path / name) for name in ("model.pth", "model.safetensors")]
    ours, theirs = (fit_model(source, settings, beside=tmp_path).layers for source in sources)
    assert len(ours) == 2
    assert [(layer.sha256, layer.error) for layer in ours] == [(layer.sha256, layer.error) for layer in theirs]


def test_a_hugging_face_folder_of_torch_files(bert: Path, tmp_path: Path) -> None:
    state = load_huggingface(open_source(bert)).state_dict()
    half = len(state) // 2
    for i, part in enumerate((list(state)[:half], list(state)[half:])):
        torch.save({name: state[name] for name in part}, tmp_path / f"pytorch_model-0000{i + 1}-of-00002.bin")
    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    source = open_source(tmp_path)
    assert source.config is not None
    assert set(source.tensors()) == set(state)
    assert len(source.hashes()) == 2


def test_tensors_that_share_memory_are_fitted_and_expanded(tmp_path: Path) -> None:
    """A head tied to its embedding, and a bias that stands under two names, as torch.save keeps them."""
    embedding, bias = torch.randn(200, 64), torch.randn(200)
    tied = {"embed.weight": embedding, "head.weight": embedding, "head.bias": bias, "bias": bias, "part": bias[10:20]}
    model = {**tied, "fc.weight": torch.randn(96, 64)}
    torch.save(model, tmp_path / "model.pt")
    fit = FitSettings(stages=3, steps=2)
    settings = CompressSettings(fit, include=("fc.*",))
    artifact = fit_model(open_source(tmp_path / "model.pt"), settings, beside=tmp_path)
    write_artifact(artifact, tmp_path / "model.spm.safetensors")
    found = read_artifact(tmp_path / "model.spm.safetensors")
    assert [layer.name for layer in found.layers] == ["fc.weight"]
    for name, values in tied.items():
        assert torch.equal(found.tensors[name], values), name


class Harmful:
    """Would write a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("harm.txt", "w"))


def harmful(path: Path) -> None:
    torch.save({"a": torch.ones(3), "b": Harmful()}, path)


def harmful_legacy(path: Path) -> None:
    torch.save({"a": torch.ones(3), "b": Harmful()}, path, _use_new_zipfile_serialization=False)


def bare_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Harmful()))


def compressed(path: Path) -> None:
    torch.save(values(), path.with_name("plain"))
    with zipfile.ZipFile(path.with_name("plain")) as plain, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))


def cut(path: Path) -> None:
    torch.save(values(), path)
    path.write_bytes(path.read_bytes()[:-400])


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (harmful, r"would run \w+\.open when it is loaded, so it is not"),
        (harmful_legacy, r"would run \w+\.open when it is loaded, so it is not"),
        (bare_pickle, r"model\.pt: "),
        (lambda path: torch.save(nn.Linear(3, 4), path), r"would run torch\.nn\.modules\.linear\.Linear when it is"),
        (compressed, "is a compressed archive, which torch.save never writes"),
        (
            lambda path: torch.save({"a": torch.ones(1).expand(1 << 20, 1 << 20)}, path),
            r"tensor 'a' of shape \[1048576, 1048576\] is larger than the 4 bytes stored for it",
        ),
        (cut, "not a whole file of torch.save"),
        (lambda path: path.write_bytes(b""), "is empty"),
        (lambda path: path.write_bytes(b"\x80\x04junk" * 9), r"model\.pt: "),
        (lambda path: torch.save([1, 2], path), "holds a list, not a state dict"),
        (lambda path: torch.save({"epoch": 3}, path), "holds no tensors"),
        (lambda path: torch.save({"a": torch.eye(3).to_sparse()}, path), "is sparse"),
    ],
)
def test_what_is_no_plain_state_dict_is_refused_in_one_line(
    write: Callable[[Path], object], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "model.pt")
    with pytest.raises(SourceError, match=words) as error:
        open_source(tmp_path / "model.pt")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm.txt").exists()
