"""What `export` prints of an ONNX graph: how its nodes run, what else reads a weight, and what is not in it."""

from __future__ import annotations

from pathlib import Path

import onnx
from awkward_graphs import draw, graph, node
from running import spm

FIT = ["fit", "model.onnx", "--steps", "5", "--stages", "2", "--block", "8"]


def test_the_nodes_are_counted_by_how_they_run_and_other_readers_are_named(tmp_path: Path) -> None:
    nodes = [
        node("Transpose", ["x"], "t", perm=[1, 0]),
        node("MatMul", ["u", "t"], "left"),  # runs as the matrix
        node("Transpose", ["left"], "h", perm=[1, 0]),
        node("MatMul", ["h", "w"], "m"),
        node("ReduceSum", ["w"], "s", keepdims=0),
        node("Add", ["m", "s"]),
    ]
    onnx.save(graph(nodes, {"u": draw(0), "w": draw(1)}), tmp_path / "model.onnx")
    assert spm(*FIT, cwd=tmp_path).returncode == 0
    done = spm("export", "--onnx", "out.onnx", "--lowering", "blocks", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "out.onnx: 2 SPM nodes (1 blocks, 1 dense), " in done.stdout
    assert "w: is also read by ReduceSum, which gets the multiplied-out matrix" in done.stdout


def test_a_missing_layer_ends_with_1_unless_it_is_allowed(tmp_path: Path) -> None:
    tensors = {"u": draw(0), "w": draw(1)}
    both = [node("MatMul", ["x", "u"], "h"), node("MatMul", ["h", "w"])]
    onnx.save(graph(both, tensors), tmp_path / "model.onnx")
    onnx.save(graph([node("MatMul", ["x", "u"])], tensors), tmp_path / "less.onnx")
    assert spm(*FIT, cwd=tmp_path).returncode == 0
    export = ["export", "--graph", "less.onnx", "--onnx", "out.onnx", "--lowering", "blocks"]
    refused = spm(*export, cwd=tmp_path)
    assert refused.returncode == 1
    assert "w: fitted, but the graph does not multiply by what the artifact has of it" in refused.stderr
    assert not (tmp_path / "out.onnx").exists()
    allowed = spm(*export, "--allow-missing", cwd=tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    assert "w: was fitted, but the graph does not multiply by it; it is left out" in allowed.stderr
    assert "1 of 2 fitted weights are in it" in allowed.stdout


def test_forms_with_ways_of_their_own_stand_in_one_table(tmp_path: Path) -> None:
    """Stages have no product of whole numbers, a dense map has no blocks."""
    nodes = [node("MatMul", ["x", "u"], "h"), node("MatMul", ["h", "w"])]
    onnx.save(graph(nodes, {"u": draw(0), "w": draw(1)}), tmp_path / "model.onnx")
    assert spm(*FIT, "--include", "u", "--dense-bits", "8", cwd=tmp_path).returncode == 0
    done = spm("export", "--onnx", "out.onnx", "--threads", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("out.onnx:")[0]
    assert "int8" in table and "blocks" in table and "-" in table
