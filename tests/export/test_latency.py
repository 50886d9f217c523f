"""Timing whole models: every combination, one after the other, and nothing that is not asked for."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import lookup, product

from spm_compress.errors import SourceError, UsageError, VerificationError
from spm_compress.export.measuring import footprint as footprint_module
from spm_compress.export.measuring.footprint import footprint
from spm_compress.export.measuring.latency import BenchSettings, bench_json, measure
from spm_compress.export.measuring.timing import interleaved

CPU = "CPUExecutionProvider"
QUICK = BenchSettings(batches=(1, 4), sequences=(5, 7), repeats=3, seconds=0.5)


def test_every_combination_is_timed_once_and_ratios_are_those_of_the_medians(tmp_path: Path) -> None:
    told: list[str] = []
    settings = BenchSettings(threads=(1, 2), batches=(1, 4), sequences=(5, 7), repeats=3, seconds=0.5)
    bench = measure(lookup(tmp_path / "a.onnx"), lookup(tmp_path / "b.onnx"), settings, told.append)
    cells = [(each.provider, each.threads, each.batch, each.sequence) for each in bench.latencies]
    assert cells == list(itertools.product([CPU], (1, 2), (1, 4), (5, 7)))
    for each in bench.latencies:
        assert each.against is not None
        assert each.ratio == each.against.median / each.model.median
        assert 0 < each.model.median <= each.model.p90
    (load,) = bench.loads
    assert load.ratio("bytes") == 1.0
    assert told[0] == f"{CPU}: load time and memory"
    assert [line.split()[0] for line in told[1:]] == [f"[{i}/8]" for i in range(1, 9)]


def test_a_model_alone_has_no_ratios(tmp_path: Path) -> None:
    bench = measure(product(tmp_path / "a.onnx"), settings=QUICK)
    assert [(each.batch, each.against, each.ratio) for each in bench.latencies] == [(1, None, None), (4, None, None)]
    assert bench.loads[0].against is None
    assert bench.loads[0].ratio("bytes") is None


@pytest.mark.parametrize(
    ("dims", "sizes"),
    [
        (("batch", 96), [(1, None), (4, None)]),
        ((3, 96), [(3, None)]),
        ((2, "sequence", 96), [(2, 5), (2, 7)]),
        (("batch", "sequence", 96), [(1, 5), (1, 7), (4, 5), (4, 7)]),
    ],
)
def test_fixed_axes_are_timed_as_they_are_and_not_twice(
    dims: tuple[str | int, ...], sizes: list[tuple[int, int | None]], tmp_path: Path
) -> None:
    bench = measure(product(tmp_path / "a.onnx", dims=dims), settings=QUICK)
    assert [(each.batch, each.sequence) for each in bench.latencies] == sizes


def test_the_size_includes_the_data_beside_the_model(tmp_path: Path) -> None:
    path = product(tmp_path / "a.onnx", data="a.data")
    bench = measure(path, product(tmp_path / "b.onnx"), QUICK)
    assert bench.loads[0].model.bytes == path.stat().st_size + (tmp_path / "a.data").stat().st_size
    assert (tmp_path / "a.data").stat().st_size >= 4 * 96 * 64


def test_memory_grows_with_the_model(tmp_path: Path) -> None:
    inputs = {"x": np.zeros((1, 4096), np.float32)}
    sizes = []
    for features in (16, 8192):  # 0.3 MB and 134 MB of weights
        weight = numpy_helper.from_array(np.ones((4096, features), np.float32), "w")
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, w]) for n, w in (("x", 4096), ("y", features)))
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
        path = tmp_path / f"{features}.onnx"
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), path)
        sizes.append(footprint(path, inputs, CPU, 1).peak_memory)
    assert sizes[1] - sizes[0] > 4096 * 8192 * 4


def test_memory_does_not_begin_at_that_of_this_process(tmp_path: Path) -> None:
    held = np.ones(40_000_000)  # 320 MB that a child would inherit as its peak
    inputs = {"x": np.zeros((1, 96), np.float32)}
    assert footprint(product(tmp_path / "a.onnx"), inputs, CPU, 1).peak_memory < held.nbytes / 2


def test_the_fresh_process_imports_neither_torch_nor_this_package(tmp_path: Path) -> None:
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['load_once.py', {str(product(tmp_path / 'a.onnx'))!r}, {CPU!r}, '1']\n"
        f"runpy.run_path({str(footprint_module._PROGRAM)!r}, run_name='__main__')\n"
        "assert not {'torch', 'spm_compress', 'onnx_ir'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_two_models_with_other_inputs_are_refused(tmp_path: Path) -> None:
    a = product(tmp_path / "a.onnx")
    with pytest.raises(VerificationError, match=r"a\.onnx takes x, but .*b\.onnx takes z; only models with the same"):
        measure(a, product(tmp_path / "b.onnx", x="z"), QUICK)
    with pytest.raises(VerificationError, match=r"input x is float \[\?, 96\] in .*a\.onnx, but float \[3, 96\] in"):
        measure(a, product(tmp_path / "b.onnx", dims=(3, 96)), QUICK)


def test_a_size_that_the_model_cannot_run_is_named(tmp_path: Path) -> None:
    path = lookup(tmp_path / "a.onnx", positions=32)
    settings = BenchSettings(batches=(2,), sequences=(33,), repeats=3)
    with pytest.raises(
        VerificationError, match=r"a\.onnx: ONNX Runtime cannot run the model .*input_ids \[2, 33\]; choose other sizes"
    ):
        measure(path, settings=settings)


def test_what_cannot_be_timed_is_refused_before_anything_runs(tmp_path: Path) -> None:
    path = product(tmp_path / "a.onnx")
    with pytest.raises(UsageError, match="CPUExecutionProvider"):
        measure(path, settings=BenchSettings(providers=("CPUExecutionProvidr",)))
    with pytest.raises(SourceError, match=r"absent\.onnx"):
        measure(path, tmp_path / "absent.onnx", QUICK)
    broken = product(tmp_path / "b.onnx", data="b.data")
    (tmp_path / "b.data").unlink()
    with pytest.raises(SourceError, match=r"b\.data"):
        measure(broken, settings=QUICK)


def test_json_has_every_figure(tmp_path: Path) -> None:
    alone = bench_json(measure(product(tmp_path / "a.onnx"), settings=QUICK))
    both = bench_json(measure(product(tmp_path / "a.onnx"), product(tmp_path / "b.onnx"), QUICK))
    keys = {"schema", "model", "against", "onnxruntime", "settings", "loads", "latencies"}
    assert set(alone) == set(both) == keys
    assert alone["schema"] == "spm-compress/bench/1"
    for each in both["latencies"]:
        assert set(each) == {"provider", "threads", "batch", "sequence", "model", "against", "ratio"}
        assert each["ratio"] == each["against"]["median_seconds"] / each["model"]["median_seconds"]
    for load in both["loads"]:
        assert set(load["model"]) == set(load["against"]) == {"bytes", "load_seconds", "peak_memory_bytes"}
        assert set(load["ratio"]) == {"bytes", "load", "peak_memory"}
    assert alone["latencies"][0]["against"] is None


def test_calls_take_turns_of_which_the_first_run_is_not_timed() -> None:
    order: list[str] = []
    calls = {"a": lambda: order.append("a"), "b": lambda: order.append("b")}
    interleaved(calls, repeats=4)
    assert order == [*"aaaa", *"bbbb"] * 2
    order.clear()
    interleaved(calls, repeats=1)
    assert order == [*"aabb"]
    order.clear()
    interleaved(calls, repeats=100, seconds=0.0)
    assert order == [*"aaaabbbb"], "a limit of time leaves one turn"
