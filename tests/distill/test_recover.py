"""From an artifact to a better one: what changes, what stays, and what an interruption may not change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import AutoTokenizer

from spm_compress import export_onnx, read_artifact, summarize, write_artifact
from spm_compress.checkpoint import Artifact, Source
from spm_compress.compress import load_model
from spm_compress.distill import DistillSettings, Rates, Recovered, Trained, TrainingReport, recover
from spm_compress.errors import ArtifactError, ExportError, UsageError
from spm_compress.forms import relative_error

QUICK = DistillSettings(
    steps=60, batch=8, check_every=10, keep_every=5, held_out=0.2, rates=Rates.parse("1e-2"), block_share=0.1
)


@pytest.fixture(scope="module")
def recovered(artifact: Artifact, source: Source, texts: Path) -> Recovered:
    return recover(artifact, source, texts, QUICK, beside=source.path.parent)


def tokens(source: Source) -> dict[str, torch.Tensor]:
    tokenizer = AutoTokenizer.from_pretrained(source.path)
    return dict(tokenizer(["ba de fi", "ko lu ma ne pi"], padding=True, return_tensors="pt"))


def test_the_recovered_model_agrees_more_with_the_original(recovered: Recovered) -> None:
    assert recovered.distilled.after > recovered.distilled.before + 0.02
    assert recovered.distilled.steps == QUICK.steps


def test_what_is_stored_is_what_was_trained(
    recovered: Recovered, source: Source, artifact: Artifact, tmp_path: Path
) -> None:
    path = tmp_path / "out.spm.safetensors"
    write_artifact(recovered.artifact, path)
    model = load_model(read_artifact(path), source)
    inputs = tokens(source)
    with torch.no_grad():
        (found, trained, fitted) = (
            each(**inputs).last_hidden_state for each in (model, recovered.student, load_model(artifact, source))
        )
    # Canonical form and back, two layers of eight stages: rounding of float32.
    torch.testing.assert_close(found, trained, rtol=1e-3, atol=1e-4)
    assert float((trained - fitted).norm() / fitted.norm()) > 0.01
    savings = summarize(recovered.artifact, path)
    assert savings.recovery is not None
    assert savings.recovery.after == recovered.distilled.after
    assert "trained to answer" in savings.verdict
    assert path.stat().st_size < 1.1 * sum(x.nbytes for x in artifact.tensors.values()) + 60_000


def test_errors_are_those_of_the_new_numbers_against_the_old_weights(recovered: Recovered, source: Source) -> None:
    for layer in recovered.artifact.layers:
        assert layer.error == pytest.approx(relative_error(source.read(layer.name), layer.operator), rel=1e-9)
        assert layer.output_error is None


def test_only_numbers_biases_and_norms_change_unless_all_may(
    recovered: Recovered, artifact: Artifact, source: Source, texts: Path
) -> None:
    changed = {n for n, x in artifact.tensors.items() if not torch.equal(x, recovered.artifact.tensors[n])}
    assert changed
    assert all(artifact.tensors[name].dim() == 1 for name in changed)
    assert changed <= set(recovered.artifact.retrained)
    assert any("LayerNorm" in name for name in changed)
    everything = recover(artifact, source, texts, replace(QUICK, trained=Trained.ALL), beside=source.path.parent)
    name = "embeddings.word_embeddings.weight"
    assert not torch.equal(everything.artifact.tensors[name], artifact.tensors[name])
    assert name in everything.artifact.retrained


def test_the_export_has_the_new_biases_and_norms(recovered: Recovered, source: Source, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    export_onnx(recovered.artifact, out, source=source)
    inputs = tokens(source)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    (found,) = session.run(["last_hidden_state"], {name: x.numpy() for name, x in inputs.items()})
    with torch.no_grad():
        expected = recovered.student(**inputs).last_hidden_state.numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(ExportError, match=r"trained after its fit.*leave `graph` out"):
        export_onnx(recovered.artifact, tmp_path / "other.onnx", graph=out)


class _StoppedError(Exception):
    pass


@pytest.mark.parametrize("at", [3, *(pytest.param(each, marks=pytest.mark.slow) for each in (7, 13)), 22])
def test_a_resumed_training_ends_with_the_same_bytes(
    recovered: Recovered, artifact: Artifact, source: Source, texts: Path, tmp_path: Path, at: int
) -> None:
    state = tmp_path / "state"

    def stop(report: TrainingReport) -> None:
        if report.step == at:
            raise _StoppedError

    with pytest.raises(_StoppedError):
        recover(artifact, source, texts, QUICK, beside=source.path.parent, state=state, watch=stop)
    assert state.exists() == (at > QUICK.keep_every)
    steps: list[int] = []
    resumed = recover(
        artifact, source, texts, QUICK, beside=source.path.parent, state=state, watch=lambda r: steps.append(r.step)
    )
    assert steps[0] == (at - 1) // QUICK.keep_every * QUICK.keep_every + 1
    paths = [tmp_path / "one", tmp_path / "two"]
    for found, path in zip((recovered, resumed), paths, strict=True):
        write_artifact(found.artifact, path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_state_of_another_training_is_refused(
    artifact: Artifact, source: Source, texts: Path, tmp_path: Path
) -> None:
    state = tmp_path / "state"

    def run(settings: DistillSettings, stop: bool) -> None:
        def watch(report: TrainingReport) -> None:
            if stop and report.step == 6:
                raise _StoppedError

        recover(artifact, source, texts, settings, beside=source.path.parent, state=state, watch=watch)

    with pytest.raises(_StoppedError):
        run(QUICK, True)
    with pytest.raises(ArtifactError, match=r"another training \(rates was .*, is .*\).*delete state"):
        run(replace(QUICK, rates=Rates.parse("0.02")), False)
    state.write_bytes(b"damaged")
    with pytest.raises(ArtifactError, match=r"not the state of a training.*delete state"):
        run(QUICK, False)


def test_a_model_that_torch_cannot_train_is_refused(artifact: Artifact, source: Source, texts: Path) -> None:
    single = type("Single", (), {"path": Path("model.onnx"), "config": None})()
    with pytest.raises(UsageError, match=r"model.onnx: .* needs a Hugging Face folder"):
        recover(artifact, single, texts, QUICK, beside=source.path.parent)
