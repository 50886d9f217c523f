"""ONNX Runtime's own format: the same outputs, without optimizations that belong to this machine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper
from running import spm

from spm_compress import CompressSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.errors import ExportError, SpmError, UsageError, VerificationError
from spm_compress.export import ExportSettings, ort_format, write_ort
from spm_compress.forms.lowering import Blocks, Lowering, Stages, lowerings


def exported(mlp_file: Path, settings: ExportSettings) -> Path:
    artifact = fit_model(open_source(mlp_file), CompressSettings(FitSettings(steps=5, block=8)), beside=mlp_file.parent)
    path = mlp_file.parent / "out.onnx"
    export_onnx(artifact, path, source=open_source(mlp_file), settings=settings)
    return path


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: x})[0])


def operators(config: Path) -> dict[str, set[str]]:
    """Return domain -> operators of a build configuration: lines of domain;opset;operator,operator."""
    found: dict[str, set[str]] = {}
    for line in config.read_text().splitlines():
        if not line.startswith("#"):
            domain, _, names = line.split(";")
            found.setdefault(domain, set()).update(names.split(","))
    return found


@pytest.mark.parametrize(
    "lowering",
    [Blocks(), *(pytest.param(each, marks=pytest.mark.slow) for each in lowerings() if each != Blocks())],
    ids=lambda lowering: lowering.name,
)
def test_the_ort_file_computes_the_same_with_onnx_operators_alone(lowering: Lowering, mlp_file: Path) -> None:
    onnx_path = exported(mlp_file, ExportSettings(lowering))
    before = set(mlp_file.parent.iterdir())
    written = write_ort(onnx_path, mlp_file.parent / "small.ort")
    assert written.path.name == "small.ort"
    assert written.config_path.name == "small.required_operators.config"
    assert set(mlp_file.parent.iterdir()) - before == {written.path, written.config_path}
    assert (written.bytes, written.config_bytes) == tuple(
        path.stat().st_size for path in (written.path, written.config_path)
    )
    assert [agreement.batch for agreement in written.agreements] == [1, 3, 16]
    x = np.random.default_rng(0).standard_normal((7, 96)).astype(np.float32)
    expected = run(onnx_path, x)
    assert np.linalg.norm(run(written.path, x) - expected) < 1e-6 * np.linalg.norm(expected)
    assert set(operators(written.config_path)) == {"ai.onnx"}
    assert str(mlp_file.parent) not in written.config_path.read_text()


def test_names_that_onnx_runtime_would_not_know_are_refused(mlp_file: Path) -> None:
    with pytest.raises(UsageError, match=r"small\.onnx: .* ending \.ort"):
        write_ort(mlp_file, mlp_file.parent / "small.onnx")
    with pytest.raises(UsageError, match=r"model\.safetensors: .* end in \.onnx"):
        write_ort(mlp_file, mlp_file.parent / "small.ort")
    with pytest.raises(ExportError, match=r"absent\.onnx: no such ONNX file"):
        write_ort(mlp_file.parent / "absent.onnx", mlp_file.parent / "small.ort")


def test_what_onnx_runtime_cannot_convert_is_said_in_one_line_and_leaves_no_file(tmp_path: Path) -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"], domain="nowhere")], "g", [x], [y])
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("nowhere", 1)], ir_version=9
    )
    onnx.save(model, tmp_path / "odd.onnx")
    with pytest.raises(ExportError, match=r"odd\.onnx: ONNX Runtime .* cannot convert it .*Nonsense") as raised:
        write_ort(tmp_path / "odd.onnx", tmp_path / "odd.ort")
    assert len(str(raised.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["odd.onnx"]
    with pytest.raises(SpmError, match="cannot be written"):
        write_ort(tmp_path / "odd.onnx", tmp_path / "absent" / "odd.ort")


def test_a_file_that_differs_is_not_kept(mlp_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    onnx_path, other = exported(mlp_file, ExportSettings(Stages())), mlp_file.parent / "other.onnx"
    model = onnx.load(onnx_path)
    weight = next(array for array in model.graph.initializer if array.name.endswith(".spm.0.scales"))
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] *= 1.01
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, other)
    right = ort_format._convert
    monkeypatch.setattr(ort_format, "_convert", lambda path, folder: right(other, folder))
    before = set(mlp_file.parent.iterdir())
    with pytest.raises(VerificationError, match=r"small\.ort: differs from out\.onnx"):
        write_ort(onnx_path, mlp_file.parent / "small.ort")
    assert set(mlp_file.parent.iterdir()) == before


@pytest.mark.slow
def test_the_command_line_writes_it_with_and_without_the_onnx_file(mlp_file: Path) -> None:
    folder = mlp_file.parent

    def printed(*arguments: str) -> str:
        done = spm(*arguments, cwd=folder)
        assert done.returncode == 0, done.stderr
        return done.stdout

    printed("fit", "model.safetensors", "--steps", "5")
    before = {path.name for path in folder.iterdir()}
    text = printed("export", "--ort", "a.ort", "--lowering", "stages")
    assert "ONNX model (not kept): 2 SPM nodes" in text
    assert "a.ort: " in text
    assert "a.required_operators.config: " in text
    assert {path.name for path in folder.iterdir()} - before == {"a.ort", "a.required_operators.config"}
    result = json.loads(printed("export", "--onnx", "b.onnx", "--ort", "b.ort", "--lowering", "stages", "--json"))
    assert [file["path"] for file in result["files"]] == ["b.onnx"]
    (ort,) = result["ort"]
    assert ort["path"] == "b.ort"
    assert ort["bytes"] == (folder / "b.ort").stat().st_size
    x = np.random.default_rng(0).standard_normal((4, 96)).astype(np.float32)
    np.testing.assert_array_equal(run(folder / "a.ort", x), run(folder / "b.ort", x))
