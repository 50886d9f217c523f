"""Models whose tensors lie in other files: exported into any folder in any form, and nothing left that is not whole."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from awkward_graphs import WIDTH, draw, fitted, graph, info, node, overwrite, relative_error, run
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from spm_compress import CompressSettings, ExportSettings, FitSettings, export_onnx, fit_model, open_source
from spm_compress.checkpoint import Artifact
from spm_compress.export import Precision, write_ort
from spm_compress.export.lowering import Blocks
from spm_compress.export.ort_format import ort_beside
from spm_compress.export.side_by_side import VerifySettings, side_by_side

EXTERNAL = st.fixed_dictionaries(
    {
        "size_threshold": st.sampled_from([0, 100, 1024, 100_000]),
        "all_tensors_to_one_file": st.booleans(),
        "convert_attribute": st.booleans(),
    }
)
LIMITS = {Precision.FLOAT32: 1e-4, Precision.FLOAT16: 2e-2, Precision.INT8: 5e-2}


def model() -> onnx.ModelProto:
    """A lookup, a product with an initializer, one with a Constant, and a bias."""
    held = onnx.numpy_helper.from_array(draw(2), "held")
    nodes = [
        node("Gather", ["table", "i"], "e"),
        node("MatMul", ["e", "w"], "h"),
        node("Constant", [], "c", value=held),
        node("MatMul", ["h", "c"], "m"),
        node("Add", ["m", "b"]),
    ]
    tensors = {"table": draw(0, 300, WIDTH), "w": draw(1), "b": draw(3, WIDTH)}
    return graph(nodes, tensors, [info("i", ["n"], TensorProto.INT64)], [info("y", ["n", WIDTH])])


def opens(folder: Path) -> bool:
    return all(onnxruntime.InferenceSession(each, providers=["CPUExecutionProvider"]) for each in folder.glob("*.onnx"))


def expected_of(path: Path, artifact: Artifact) -> onnx.ModelProto:
    made, source = onnx.load(path), open_source(path)
    for each in artifact.layers:
        assert overwrite(made, source.read(each.name).numpy(), each.spm.to_dense().numpy())
    return made


@settings(max_examples=6)
@given(EXTERNAL, st.booleans(), st.sampled_from(list(Precision)))
def test_any_way_to_keep_tensors_outside_is_exported_into_any_folder(
    options: dict[str, bool | int], is_elsewhere: bool, precision: Precision
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        target = folder / "else" if is_elsewhere else folder
        target.mkdir(exist_ok=True)
        location = {"location": "weights.bin"} if options["all_tensors_to_one_file"] else {}
        path, artifact = fitted(model(), folder, save_as_external_data=True, **options, **location)
        assert {each.name for each in artifact.layers} == {"w", "c"}
        before = set(target.iterdir())
        exported = export_onnx(
            artifact,
            target / "out.onnx",
            source=open_source(path),
            settings=ExportSettings(Blocks(), precision=precision),
            dense_path=target / "dense.onnx",
        )
        assert set(target.iterdir()) - before == {target / "out.onnx", target / "dense.onnx"}
        assert opens(target)
        i = np.arange(5)
        answer = run(expected_of(path, artifact), i=i)["y"]
        assert relative_error(run(exported.path, i=i)["y"], answer) < LIMITS[precision]
        np.testing.assert_array_equal(run(target / "dense.onnx", i=i)["y"], run(path, i=i)["y"])
        assert relative_error(run(path, i=i)["y"], answer) > 0.1


def test_the_exporters_default_output_goes_through_ort_and_verify(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(
        torch.nn.Embedding(200, 48), torch.nn.Linear(48, 64), torch.nn.ReLU(), torch.nn.Linear(64, 48)
    )
    path = tmp_path / "model.onnx"
    program = torch.onnx.export(
        net.eval(),
        (torch.zeros(2, 5, dtype=torch.long),),
        dynamo=True,
        verbose=False,
        dynamic_shapes=({0: "b", 1: "s"},),
    )
    assert program is not None
    program.save(path, external_data=True)
    assert (tmp_path / "model.onnx.data").exists()
    quick = CompressSettings(FitSettings(stages=2, steps=5, block=8))
    artifact = fit_model(open_source(path), quick, beside=tmp_path)
    (tmp_path / "else").mkdir()
    exported = export_onnx(
        artifact, tmp_path / "else" / "out.onnx", source=open_source(path), settings=ExportSettings(Blocks())
    )
    ort = tmp_path / "else" / "out.ort"
    write_ort(exported.path, ort_beside(ort, exported.path, exported.path))
    assert ort.exists()
    found = side_by_side(exported.path, path, VerifySettings(batches=(2,), sequences=(3,)))
    assert found


@pytest.mark.parametrize("threshold", [0, 1024])
def test_nothing_is_left_where_the_export_fails(
    threshold: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from spm_compress.errors import SpmError
    from spm_compress.export import one_file

    path, artifact = fitted(model(), tmp_path, save_as_external_data=True, location="w.bin", size_threshold=threshold)
    (tmp_path / "else").mkdir()
    monkeypatch.setattr(one_file, "TOLERANCE", 0.0)
    monkeypatch.setattr(one_file, "_TOLERANCES", dict.fromkeys(Precision, 0.0))
    with pytest.raises(SpmError, match="differ by"):
        export_onnx(
            artifact,
            tmp_path / "else" / "out.onnx",
            source=open_source(path),
            settings=ExportSettings(Blocks()),
            dense_path=tmp_path / "else" / "dense.onnx",
        )
    assert {each.name for each in (tmp_path / "else").iterdir()} <= {"dense.onnx"}
    assert opens(tmp_path / "else")
