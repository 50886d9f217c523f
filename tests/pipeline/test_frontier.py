"""Files of one model measured side by side: agreement against an oracle, what is left out, and the JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnxruntime
import pytest
from sentence_graph import held_out, sentence_graph

from spm_compress.distill.settings import Loss
from spm_compress.errors import SpmError, UsageError, VerificationError
from spm_compress.export.measuring import footprint
from spm_compress.pipeline.frontier import FrontierSettings, frontier_json, measure_frontier
from spm_compress.pipeline.standing import Contender, Frontier, LeftOut

SCHEMA = Path(__file__).parents[2] / "docs" / "schema" / "frontier-1.schema.json"
QUICK = FrontierSettings(batches=(1, 2), sequences=(3, 4), repeats=3, seconds=0.1)
HELD = held_out()


@pytest.fixture(autouse=True)
def one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A load is measured once: starting a Python takes longer than everything else here."""
    monkeypatch.setattr(footprint, "PROCESSES", 1)


Fast = Callable[..., Frontier]


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> Fast:
    """measure_frontier without processes of their own for load and memory, which one test has."""
    known = footprint.Footprint(1, 0.1, 1)
    monkeypatch.setattr(
        "spm_compress.pipeline.frontier.footprint", lambda path, *_: replace(known, bytes=path.stat().st_size)
    )
    return measure_frontier


def two(folder: Path, noise: float = 0.3, **of_graph: str) -> list[Contender]:
    return [
        Contender("float32", sentence_graph(folder / "a.onnx", **of_graph), "original"),
        Contender("noisy", sentence_graph(folder / "b.onnx", noise=noise, **of_graph), "ours"),
    ]


def run(path: Path, output: str) -> list[np.ndarray]:
    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return [runtime.run([output], {"input_ids": batch["input_ids"]})[0] for batch in HELD]


def ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < each).sum() for each in values])


def similarities(path: Path) -> np.ndarray:
    """Cosine of the means over real tokens, of all pairs."""
    rows = []
    for features, batch in zip(run(path, "last_hidden_state"), HELD, strict=True):
        for sample, mask in zip(features, batch["attention_mask"], strict=True):
            mean = sample[mask == 1].mean(0)
            rows.append(mean / np.sqrt((mean**2).sum()))
    return np.array([rows[i] @ rows[j] for i in range(len(rows)) for j in range(i + 1, len(rows))])


def test_everything_is_measured_and_the_json_is_what_the_schema_says(tmp_path: Path) -> None:
    told: list[str] = []
    contenders = two(tmp_path)
    gone = LeftOut("int4", "no product")
    found = measure_frontier(contenders, HELD, QUICK, told.append, left_out=[gone], score=lambda p: len(p.name) / 2)
    assert found.shapes == ((1, 3), (1, 4), (2, 3), (2, 4))
    original, noisy = found.standings
    assert (original.name, original.kind, original.agreement, original.score) == ("float32", "original", 1.0, 3.0)
    assert original.bytes == contenders[0].path.stat().st_size
    for each in found.standings:
        assert len(each.seconds) == 4
        assert min(*each.seconds, each.load_seconds) > 0
        assert each.peak_bytes > 100_000
    assert noisy.agreement < 0.99
    assert found.left_out == (gone,)
    assert told[-1] == "[4/4] latency at batch 2, sequence 4"
    value = json.loads(json.dumps(frontier_json(found)))
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.validate(value, schema)
    assert value["standings"][1]["dominated_by"] == list(found.dominated_by("noisy"))
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**value, "more": 1}, schema)


def test_agreement_of_features_is_that_of_an_oracle(tmp_path: Path, fast: Fast) -> None:
    contenders = two(tmp_path)
    found = fast(contenders, HELD, QUICK)
    known, theirs = (similarities(each.path) for each in contenders)
    expected = np.corrcoef(ranks(known), ranks(theirs))[0, 1]
    assert (found.measure, found.samples) == ("similarities", 24)
    assert 0.3 < expected < 0.98
    assert found.standings[1].agreement == pytest.approx(expected, abs=1e-3)  # a pair or two may change places
    unmasked = [{"input_ids": batch["input_ids"]} for batch in HELD]
    other = fast(contenders, unmasked, QUICK).standings[1].agreement
    assert abs(other - expected) > 2e-3, "padding counts where nothing says that it is padding"


def test_agreement_of_logits_is_the_share_of_equal_answers_of_real_tokens(tmp_path: Path, fast: Fast) -> None:
    contenders = two(tmp_path, output="logits")
    found = fast(contenders, HELD, QUICK)
    answers = [[each.argmax(-1) for each in run(one.path, "logits")] for one in contenders]
    real = [batch["attention_mask"] == 1 for batch in HELD]
    expected = np.concatenate([(a == b)[mask] for a, b, mask in zip(*answers, real, strict=True)]).mean()
    assert found.measure == "answers"
    assert 0.2 < expected < 0.95
    assert found.standings[1].agreement == pytest.approx(expected, abs=1e-12)
    assert fast(contenders, HELD, replace(QUICK, loss=Loss.FEATURES)).measure == "similarities"


def test_an_output_of_another_name_is_taken_as_features_or_as_the_settings_say(tmp_path: Path, fast: Fast) -> None:
    features = fast(two(tmp_path), HELD, QUICK).standings[1].agreement
    named = two(tmp_path, output="y")
    assert fast(named, HELD, QUICK).standings[1].agreement == features
    assert fast(named, HELD, replace(QUICK, loss=Loss.LOGITS)).measure == "answers"


def test_numbers_are_compared_by_their_order(tmp_path: Path, fast: Fast) -> None:
    import onnx

    contenders = two(tmp_path, noise=0.2)
    for each in contenders:
        model = onnx.load(each.path)
        del model.graph.output[:2]
        onnx.save(model, each.path)
    known, theirs = (np.concatenate(run(each.path, "number")) for each in contenders)
    found = fast(contenders, HELD, QUICK)
    assert found.measure == "numbers"
    assert found.standings[1].agreement == pytest.approx(np.corrcoef(ranks(known), ranks(theirs))[0, 1], abs=1e-9)
    assert found.standings[1].agreement < 0.99


def test_a_baseline_that_cannot_be_measured_is_left_out_and_a_file_of_ours_is_an_error(
    tmp_path: Path, fast: Fast
) -> None:
    original, _ = two(tmp_path)
    (tmp_path / "no.onnx").write_bytes(b"no model")
    others = {
        "no model": tmp_path / "no.onnx",
        "other inputs": sentence_graph(tmp_path / "ids.onnx", ids="ids"),
        "other outputs": sentence_graph(tmp_path / "y.onnx", output="y"),
        "not finite": sentence_graph(tmp_path / "nan.onnx", noise=float("nan")),
    }
    found = fast([original, *(Contender(name, path, "baseline") for name, path in others.items())], HELD, QUICK)
    assert [each.name for each in found.standings] == ["float32"]
    why = {each.name: each.why for each in found.left_out}
    assert list(why) == list(others)
    assert "has no output last_hidden_state" in why["other outputs"]
    assert "is not finite" in why["not finite"]
    assert all("\n" not in each for each in why.values())
    for name, path in others.items():
        with pytest.raises(SpmError):
            fast([original, Contender(name, path, "ours")], HELD, QUICK)


def test_what_makes_no_comparison_is_refused(tmp_path: Path, fast: Fast) -> None:
    original, ours = two(tmp_path)
    with pytest.raises(UsageError, match="must begin with the one original"):
        fast([ours, original], HELD, QUICK)
    with pytest.raises(UsageError, match="two files called noisy"):
        fast([original, ours, ours], HELD, QUICK)
    with pytest.raises(UsageError, match="`data` has 2 samples to compare answers on; give 3 or more"):
        fast([original, ours], [{"input_ids": np.zeros((2, 4), np.int64)}], QUICK)
    with pytest.raises(UsageError, match="`data` lacks the input 'input_ids'"):
        fast([original, ours], [{"x": np.zeros((4, 4), np.int64)}], QUICK)
    with pytest.raises(UsageError, match="`provider` Other"):
        fast([original, ours], HELD, replace(QUICK, provider="Other"))
    nan = Contender("float32", sentence_graph(tmp_path / "nan.onnx", noise=float("nan")), "original")
    with pytest.raises(VerificationError, match="is not finite on the held-out data"):
        fast([nan, ours], HELD, QUICK)
