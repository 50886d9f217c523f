"""A cache answers for one question: whatever its answer depends on, changed alone, is another key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from draw import random_operator
from hypothesis import given
from hypothesis import strategies as st
from made import fitted_layer
from safetensors.torch import save_file

from spm_compress import ExportSettings, FitSettings, cache_key, open_source
from spm_compress.calibration.collect import moments_key
from spm_compress.calibration.moments import Moments, PairedMoments
from spm_compress.checkpoint import FittedLayer
from spm_compress.codecs import FLOAT16, FLOAT32, Codec
from spm_compress.compress.cache import fit_key
from spm_compress.compress.job import Job
from spm_compress.export import choice
from spm_compress.export.choice import layer_key, model_key
from spm_compress.export.settings import Precision, Weights
from spm_compress.export.trials import Known
from spm_compress.forms import Form, StoredOperator
from spm_compress.forms.low_rank import LowRank
from spm_compress.forms.lowering import Stages
from spm_compress.forms.spm import Mixer, Schedule, build_spm
from spm_compress.forms.sum import Sum

# A value of each field that is not its default.
FIT = FitSettings(4, Mixer.ROTATION, 2, Schedule.BUTTERFLY, 8, 7, 0.1, 3, ("low_rank",), FLOAT16, True)
EXPORT = ExportSettings(
    Stages(), (2,), 7, 1, "CUDAExecutionProvider", Precision.FLOAT16, True, True, False, Weights.AUTO
)

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.sampled_from([torch.float16, Mixer.GENERAL]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(PLAIN, PLAIN)
def test_two_values_have_one_key_if_they_are_written_alike(a: object, b: object) -> None:
    assert (cache_key.cache_key(it=a) == cache_key.cache_key(it=b)) == (repr(_sorted(a)) == repr(_sorted(b)))


def _sorted(value: object) -> object:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(each) for each in value] if isinstance(value, list) else value


def test_arrays_count_by_dtype_shape_and_values() -> None:
    arrays = [np.zeros(4, np.float32), np.zeros((2, 2), np.float32), np.zeros(4, np.int32), np.ones(4, np.float32)]
    assert len({cache_key.cache_key(it=array) for array in arrays}) == len(arrays)
    assert cache_key.cache_key(it=torch.zeros(4)) == cache_key.cache_key(it=arrays[0])
    with pytest.raises(TypeError, match="object has no cache key"):
        cache_key.cache_key(it=object())


def test_the_programs_version_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache_key.cache_key(it=1)
    monkeypatch.setattr(cache_key, "__version__", "another")
    assert cache_key.cache_key(it=1) != before


def moments(value: float = 1.0, rows: int = 5) -> Moments:
    return Moments(rows, torch.full((3,), value), torch.eye(3) * value)


JOB = Job(("a",), (4, 3), "F32", FitSettings(), "00", moments(), PairedMoments(moments(), *[torch.ones(3)] * 3))


@pytest.mark.parametrize(
    "change",
    [
        *(
            (lambda name=field.name: replace(JOB, fit=replace(JOB.fit, **{name: getattr(FIT, name)})))
            for field in fields(FitSettings)
        ),
        lambda: replace(JOB, sha256="01"),
        lambda: replace(JOB, moments=None),
        lambda: replace(JOB, moments=moments(2.0)),
        lambda: replace(JOB, moments=moments(rows=6)),
        lambda: replace(JOB, paired=None),
        lambda: replace(JOB, paired=replace(JOB.paired, cross=torch.zeros(3))),
        lambda: replace(JOB, has_bias=False),
        lambda: replace(JOB, stays=True),
    ],
)
def test_a_fit_is_found_by_all_that_it_depends_on(change: Callable[[], Job]) -> None:
    key = fit_key(JOB, "cpu")
    assert fit_key(change(), "cpu") != key
    assert fit_key(replace(JOB, names=("b",), dtype="F16"), "cpu") == key, "its name is none of it"


def test_a_fit_depends_on_the_device() -> None:
    assert fit_key(JOB, "cpu") != fit_key(JOB, "cuda")


def layer(stages: int = 6, sha256: str = "00") -> FittedLayer:
    form = build_spm(64, 64, stages=stages, block=8)
    return fitted_layer(random_operator(form, dtype=torch.float32), sha256=sha256)


def layer_of(form: Form, codec: Codec) -> FittedLayer:
    stored = StoredOperator.of(random_operator(form, dtype=torch.float32), codec)
    return replace(layer(), stored=stored)


# What the numbers are multiplied out to, and how they are stored.
WAYS = [
    (LowRank(64, 64, 3), FLOAT32),
    (LowRank(64, 64, 3), FLOAT16),
    (Sum((build_spm(64, 64, stages=6, block=8), LowRank(64, 64, 3))), FLOAT32),
    (build_spm(64, 64, stages=6, block=8, mixer=Mixer.ROTATION), FLOAT32),
    (build_spm(64, 64, stages=6, block=8, mixer=Mixer.ROTATION), FLOAT16),
]


def test_times_of_a_layer_are_found_by_all_that_they_depend_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def key(stages: int = 6, rows: tuple[int, ...] = (1,), **options: object) -> str:
        return layer_key(layer(stages), rows, replace(ExportSettings(), **options))

    assert key() == key() == layer_key(layer(sha256="01"), (1,), ExportSettings()), "values are none of it"
    others = [layer_key(layer_of(*way), (1,), ExportSettings()) for way in WAYS]
    others += [key(7), key(rows=(2,)), key(threads=1), key(provider="CUDAExecutionProvider")]
    for name in ("processor", "lowerings"):
        with monkeypatch.context() as patch:
            patch.setattr(choice, name, lambda: [])
            others.append(key())
    for target in (("onnxruntime", "__version__"), ("os", "cpu_count")):
        with monkeypatch.context() as patch:
            patch.setattr(getattr(choice, target[0]), target[1], "1" if target[1] == "__version__" else lambda: 99)
            others.append(key())
    assert len({key(), *others}) == 1 + len(others)


def test_times_of_a_model_are_found_by_all_that_they_depend_on(tmp_path: Path) -> None:
    graph, other = tmp_path / "dense.onnx", tmp_path / "other.onnx"
    graph.write_bytes(b"graph")
    other.write_bytes(b"another")
    base = (graph, [layer()], [["stages"]], ExportSettings(), Known())
    others = [
        (other, *base[1:]),
        (graph, [layer(7)], *base[2:]),
        *((graph, [layer_of(*way)], *base[2:]) for way in WAYS),
        (graph, [layer(sha256="01")], *base[2:]),
        (*base[:2], [["dense"]], *base[3:]),
        *(
            (*base[:3], replace(ExportSettings(), **{field.name: getattr(EXPORT, field.name)}), base[4])
            for field in fields(ExportSettings)
        ),
        (*base[:4], Known(sizes=(3,))),
        (*base[:4], Known({"x": np.zeros(3, np.float32)})),
    ]
    assert len({model_key(*base), *(model_key(*each) for each in others)}) == 1 + len(others)


def test_moments_are_found_by_model_key_and_data(tmp_path: Path) -> None:
    def key(value: float = 0.0, text: str = "a", model: str = "model") -> str:
        save_file({"w.weight": torch.full((4, 4), value)}, tmp_path / f"{model}.safetensors")
        (tmp_path / "data.txt").write_text(text)
        return moments_key(open_source(tmp_path / f"{model}.safetensors"), tmp_path / "data.txt")

    assert key() == key()
    assert len({key(), key(1.0), key(text="b"), key(model="other")}) == 4
