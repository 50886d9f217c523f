"""What was judged is what the file decodes to, to the bit, in every codec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from spm_compress import CompressSettings, FitSettings, fit_model, read_artifact, write_artifact
from spm_compress.checkpoint import Source
from spm_compress.codecs import parse_bits
from spm_compress.compress import load_model
from spm_compress.distill import DistillSettings, Rates, Trained, TrainingReport, recover
from spm_compress.errors import UsageError
from spm_compress.forms.spm.structure import Mixer

QUICK = DistillSettings(steps=24, batch=8, check_every=8, held_out=0.2, block_share=0.2, rates=Rates.parse("3e-3"))
ALL = ("encoder.*",)


def dense(bits: str, table: str = "4") -> CompressSettings:
    return CompressSettings(FitSettings(), include=("none",), dense=parse_bits(bits), table=parse_bits(table))


def structured(bits: str, **form: object) -> CompressSettings:
    fit = FitSettings(stages=8, block=8, steps=20, store=parse_bits(bits), **form)  # type: ignore[arg-type]
    return CompressSettings(fit, include=ALL)


CASES = {
    **{f"dense, {bits}": dense(bits) for bits in ("2", "1.6", "1", "3", "5", "7", "2/32", "16")},
    "dense, 8, table in 2": dense("8", "2"),
    "dense, 6, table in blocks": dense("6", "4/32"),
    **{f"stages, {bits}": structured(bits) for bits in ("4", "8")},
    "rotations, 5": structured("5", mixer=Mixer.ROTATION),
    "low rank, 3": structured("3", forms=("low_rank",)),
    "sum, 4": structured("4", forms=("sum",)),
    "monarch, 2": structured("2", forms=("monarch",)),
}


@pytest.mark.parametrize("name", CASES)
def test_what_was_judged_is_what_is_stored(name: str, source: Source, texts: Path, tmp_path: Path) -> None:
    artifact = fit_model(source, CASES[name], beside=tmp_path)
    seen: list[TrainingReport] = []
    found = recover(artifact, source, texts, QUICK, beside=tmp_path, watch=seen.append)
    path = tmp_path / "out.spm.safetensors"
    write_artifact(found.artifact, path)
    written = read_artifact(path)
    assert found.distilled.after == seen[-1].best
    if found.distilled.before < 0.9:  # with many bits there is little to gain in so few steps
        assert found.distilled.after > found.distilled.before
    assert {layer.stored.codec for layer in written.layers} == {layer.stored.codec for layer in artifact.layers}
    assert sum(layer.stored.nbytes for layer in written.layers) == sum(layer.stored.nbytes for layer in artifact.layers)
    loaded = load_model(written, source, as_stored=True)
    numbers = dict(found.student.named_parameters())
    for parameter, own in loaded.named_parameters():
        assert torch.equal(own, numbers[parameter]), parameter
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    inputs = tokenizer(["ba de fi", "ko lu ma ne pi"], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).last_hidden_state, found.student(**inputs).last_hidden_state)


def test_the_training_begins_with_what_the_file_computes(source: Source, texts: Path, tmp_path: Path) -> None:
    artifact = fit_model(source, dense("2"), beside=tmp_path, data=texts)  # codes with the error handed on
    slow = replace(QUICK, rates=Rates.parse("1e-30"), steps=8)
    found = recover(artifact, source, texts, slow, beside=tmp_path)
    for layer, now in zip(artifact.layers, found.artifact.layers, strict=True):
        assert torch.equal(layer.operator.to_dense(), now.operator.to_dense()), layer.name


def test_a_model_of_which_only_tables_were_fitted_has_no_steps_by_blocks(
    source: Source, texts: Path, tmp_path: Path
) -> None:
    settings = CompressSettings(FitSettings(), include=("none",), table=parse_bits("2"))
    artifact = fit_model(source, settings, beside=tmp_path)
    seen: list[TrainingReport] = []
    found = recover(artifact, source, texts, QUICK, beside=tmp_path, watch=seen.append)
    assert {each.stage for each in seen} == {"outputs"}
    assert found.distilled.after > found.distilled.before
    with pytest.raises(UsageError, match="`hidden`: no layer of the model holds a fitted weight"):
        recover(artifact, source, texts, replace(QUICK, hidden=1.0), beside=tmp_path)


class _StoppedError(Exception):
    pass


def test_scales_and_means_belong_to_the_state(source: Source, texts: Path, tmp_path: Path) -> None:
    artifact = fit_model(source, dense("2"), beside=tmp_path)
    settings = replace(QUICK, average=0.9, keep_every=5, trained=Trained.ALL)

    def stop(report: TrainingReport) -> None:
        if report.step == 12:
            raise _StoppedError

    whole = recover(artifact, source, texts, settings, beside=tmp_path)
    state = tmp_path / "state"
    with pytest.raises(_StoppedError):
        recover(artifact, source, texts, settings, beside=tmp_path, state=state, watch=stop)
    resumed = recover(artifact, source, texts, settings, beside=tmp_path, state=state)
    paths = [tmp_path / "one", tmp_path / "two"]
    for found, path in zip((whole, resumed), paths, strict=True):
        write_artifact(found.artifact, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()
