"""A model planned, written and judged in one call: a small classifier in ONNX, and real sessions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from trainable_graphs import classifier

from spm_compress import open_source, read_artifact
from spm_compress.compress.job import digest
from spm_compress.errors import UsageError
from spm_compress.export import ExportSettings
from spm_compress.export.probe import Replacement, open_probe
from spm_compress.export.verification import session
from spm_compress.pipeline import Compression, PlanSettings, Targets, compress
from spm_compress.pipeline.candidates import Candidate, Weight
from spm_compress.pipeline.harm import Harms
from spm_compress.pipeline.held_out import held, split

EXPORT = ExportSettings(threads=1, sequence=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return classifier(tmp_path_factory.mktemp("model") / "model.onnx")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "data.npz"
    np.savez(path, x=np.random.default_rng(1).standard_normal((120, 64)).astype(np.float32))
    return path


def made(model: Path, data: Path, folder: Path, targets: Targets, **more: object) -> Compression:
    return compress(
        open_source(model), folder / "out.onnx", targets, data, export=EXPORT, cache=folder / "cache", **more
    )  # type: ignore[arg-type]


def answers(path: Path, x: np.ndarray) -> np.ndarray:
    found: np.ndarray = session(path, 1).run(None, {"x": x})[0]
    return found


def test_a_budget_is_kept_and_the_file_agrees_as_it_says(model: Path, data: Path, tmp_path: Path) -> None:
    found = made(model, data, tmp_path, Targets(0.4))
    assert found.file is not None and found.agreement is not None and not found.missed
    path = tmp_path / "out.onnx"
    assert path.stat().st_size == found.file.bytes <= 0.4 * found.float32_bytes
    assert found.float32_bytes == pytest.approx(model.stat().st_size, rel=0.02)
    onnx.checker.check_model(str(path), full_check=True)
    parts = split(open_source(model), data, tmp_path / "cache" / "data")
    held_out = np.load(parts.held)["x"]
    same = answers(path, held_out).argmax(-1) == answers(model, held_out).argmax(-1)
    assert found.agreement == pytest.approx(same.mean()) and found.agreement > 0.8
    artifact = read_artifact(tmp_path / "out.spm.safetensors")
    assert {layer.name for layer in artifact.layers} == {name for name, each in found.plan.chosen.items() if each}
    assert artifact.settings["targets"]["budget"] == 0.4


def test_more_bytes_never_harm_more_and_a_second_target_fits_nothing_anew(
    model: Path, data: Path, tmp_path: Path
) -> None:
    harms = [made(model, data, tmp_path, Targets(share), dry_run=True).plan.harm for share in (0.2, 0.4, 0.8)]
    assert harms == sorted(harms, reverse=True) and harms[0] > harms[-1]
    fits = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")}
    again = made(model, data, tmp_path, Targets(0.4), dry_run=True)
    assert again.plan.harm == harms[1] and again.file is None and not (tmp_path / "out.onnx").exists()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.safetensors")} == fits


def test_the_same_call_writes_the_same_bytes(model: Path, data: Path, tmp_path: Path) -> None:
    written = []
    for cache in ("a", "b"):
        target = Targets(0.3)
        compress(open_source(model), tmp_path / "out.onnx", target, data, export=EXPORT, cache=tmp_path / cache)
        written.append([(tmp_path / file).read_bytes() for file in ("out.onnx", "out.spm.safetensors")])
    assert written[0] == written[1]


def test_an_agreement_is_reached_in_fewer_bytes_than_everything_in_eight_bits(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = made(model, data, tmp_path, Targets(agreement=0.85))
    assert found.agreement is not None and found.agreement >= 0.85 and found.file is not None
    closer = made(model, data, tmp_path, Targets(agreement=1.0))
    assert closer.agreement == 1.0 and closer.file is not None and closer.file.bytes > found.file.bytes


def test_what_cannot_be_reached_is_told_and_the_smallest_file_is_written(
    model: Path, data: Path, tmp_path: Path
) -> None:
    found = made(model, data, tmp_path, Targets(100.0))
    assert len(found.missed) == 1 and found.missed[0].startswith("`budget` 100 bytes: missed by")
    assert (tmp_path / "out.onnx").exists()


def test_only_what_is_allowed_is_chosen(model: Path, data: Path, tmp_path: Path) -> None:
    settings = PlanSettings(forms=("low_rank",), exclude=("second.weight",))
    found = made(model, data, tmp_path, Targets(0.5), settings=settings, dry_run=True)
    kinds = {each.kind for each in found.plan.chosen.values() if each is not None}
    assert kinds <= {"low_rank"} and "second.weight" not in found.plan.chosen
    assert found.kept["second.weight"] == "excluded"
    fewer = made(model, data, tmp_path, Targets(0.5), settings=PlanSettings(bits=("4",)), dry_run=True)
    assert {each.text for each in fewer.plan.chosen.values() if each is not None} == {"dense 4 bits"}


def test_a_probe_answers_as_the_graph_with_that_matrix(model: Path, tmp_path: Path) -> None:
    graph = onnx.load(model)
    weights = {each.name: numpy_helper.to_array(each) for each in graph.graph.initializer}
    x = np.random.default_rng(2).standard_normal((5, 64)).astype(np.float32)
    first = torch.from_numpy(weights["first/weight"].T.copy())
    probe = open_probe(open_source(model), {digest(first): (96, 64)}, tmp_path, threads=1)
    np.testing.assert_allclose(probe.answers({"x": x})["y"], answers(model, x), rtol=1e-5)
    other = 0.5 * first + 0.01
    for each in graph.graph.initializer:
        if each.name == "first/weight":
            each.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(other.numpy().T), each.name))
    onnx.save(graph, tmp_path / "changed.onnx")
    found = probe.answers({"x": x}, {digest(first): Replacement(other)})["y"]
    np.testing.assert_allclose(found, answers(tmp_path / "changed.onnx", x), rtol=1e-4)
    assert np.abs(found - answers(model, x)).max() > 1e-3
    raised = torch.linspace(-1, 1, 96)
    for each in graph.graph.initializer:
        if each.name == "first/bias":
            each.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(each) + raised.numpy(), each.name))
    onnx.save(graph, tmp_path / "raised.onnx")
    found = probe.answers({"x": x}, {digest(first): Replacement(other, raised)})["y"]
    np.testing.assert_allclose(found, answers(tmp_path / "raised.onnx", x), rtol=1e-4)
    assert probe.bytes_of(digest(first)) == 4 * 96 * 64


def test_data_is_split_without_a_sample_in_two_parts(model: Path, data: Path, tmp_path: Path) -> None:
    parts = split(open_source(model), data, tmp_path)
    files = {"fitted": parts.fitted, "trained": parts.trained, "held": parts.held}
    rows = {name: {row.tobytes() for row in np.load(file)["x"]} for name, file in files.items()}
    assert len(rows["held"]) == 24 and len(rows["trained"]) == 96 and not rows["held"] & rows["trained"]
    assert rows["fitted"] <= rows["trained"]


def test_too_few_samples_are_refused(model: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "few.npz", x=np.zeros((9, 64), np.float32))
    with pytest.raises(UsageError, match="9 samples are too few"):
        split(open_source(model), tmp_path / "few.npz", tmp_path)


def test_harm_and_agreement_of_the_original_and_of_nonsense(model: Path, data: Path) -> None:
    runtime = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])

    def answer(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": runtime.run(None, {"x": batch["x"]})[0]}

    judge = held(open_source(model), data, answer)
    assert judge.harm(answer) == 0 and judge.agreement(answer) == 1
    worse = judge.harm(lambda batch: {"y": 0.5 * answer(batch)["y"]})
    assert worse == pytest.approx(0.25)
    assert judge.harm(lambda batch: {"y": np.nan * answer(batch)["y"]}) == 1e6
    assert judge.agreement(lambda batch: {"y": answer(batch)["y"][:, ::-1]}) < 0.5


def test_harm_between_what_was_measured_is_a_power_of_the_error(model: Path) -> None:
    job = object.__new__(type("Job", (), {"names": ("w",)}))
    weight = Weight(job, ())

    def candidate(error: float, kind: str = "dense") -> Candidate:
        fit = type("Fit", (), {"forms": (kind,)})
        return Candidate(type("Job", (), {"fit": fit})(), 1, error)  # type: ignore[arg-type]

    harms = Harms({"w": {"dense": [(0.1, 0.01), (0.2, 0.04)], "spm": [(0.5, 0.1)]}})
    assert harms.of(weight, None) == 0 and harms.of(weight, candidate(0.0)) == 0
    assert harms.of(weight, candidate(0.1)) == pytest.approx(0.01)
    assert harms.of(weight, candidate(0.4)) == pytest.approx(0.16)
    assert harms.of(weight, candidate(0.25, "spm")) == pytest.approx(0.025)
    assert Harms({}).of(weight, candidate(0.5)) == pytest.approx(0.25)


def test_a_damaged_cache_only_costs_time(model: Path, data: Path, tmp_path: Path) -> None:
    first = made(model, data, tmp_path, Targets(0.4), dry_run=True)
    (cache,) = (tmp_path / "cache").glob("*.harms.json")
    assert len(json.loads(cache.read_text())) > 3
    cache.write_text("{damaged")
    assert made(model, data, tmp_path, Targets(0.4), dry_run=True).plan.harm == first.plan.harm


def test_time_for_a_recovery_trains_what_was_planned_and_another_run_ends_with_the_same_bytes(
    model: Path, data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnx2fx", reason="onnx2fx is for Python 3.11 or later")
    first = made(model, data, tmp_path, Targets(0.3), recover_seconds=0.3)
    written = [(tmp_path / file).read_bytes() for file in ("out.onnx", "out.spm.safetensors")]
    assert first.artifact is not None and first.artifact.recovery is not None
    assert first.artifact.recovery["steps"] >= 1 and first.file is not None
    assert first.file.bytes <= 0.3 * first.float32_bytes
    made(model, data, tmp_path, Targets(0.3), recover_seconds=0.3)
    assert [(tmp_path / file).read_bytes() for file in ("out.onnx", "out.spm.safetensors")] == written
    assert len(list((tmp_path / "cache" / "training").glob("*.steps.json"))) == 1
    assert not list((tmp_path / "cache" / "training").glob("*.state"))
