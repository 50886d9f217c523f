"""Models that bring their graph with them: programs of torch.export, and what a function of the user builds."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from running import spm
from safetensors.torch import load_file, save_file
from torch import nn

from spm_compress import SPMLinear, load, read_artifact

BUILDER = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.norm = nn.Linear(64, 96), nn.Linear(96, 48), nn.LayerNorm(48)

    def forward(self, x, scale):
        return self.norm(self.second(torch.relu(self.first(x))) * scale)

def build():
    torch.manual_seed(0)
    return Net(), {"x": torch.randn(3, 64), "scale": torch.ones(3, 1)}

def without_example():
    return build()[0]

def score(model):
    return -model(x=torch.ones(2, 64), scale=torch.ones(2, 1)).square().mean()
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(BUILDER)
    return tmp_path


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48)).eval()


def save_program(path: Path) -> nn.Module:
    model = network()
    program = torch.export.export(model, (torch.randn(3, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    return model


def dense_outputs(path: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {each.name: inputs[each.name] for each in session.get_inputs()})
    return found  # type: ignore[no-any-return]


def test_a_program_is_fitted_and_exported_with_nothing_else(folder: Path) -> None:
    model = save_program(folder / "model.pt2")
    assert spm("fit", "model.pt2", "--stages", "6", "--steps", "20", "--quiet", cwd=folder).returncode == 0
    run = spm("export", "--onnx", "out.onnx", "--lowering", "stages", "--dense", "dense.onnx", "--json", cwd=folder)
    assert run.returncode == 0, run.stderr
    layers = {layer.name: layer.operator.to_dense() for layer in read_artifact(folder / "model.spm.safetensors").layers}
    assert sorted(layers) == ["0.weight", "2.weight"]
    x = torch.randn(5, 64)
    (name,) = (i.name for i in onnxruntime.InferenceSession(folder / "out.onnx").get_inputs())
    np.testing.assert_allclose(
        dense_outputs(folder / "dense.onnx", {name: x.numpy()}), model(x).detach().numpy(), atol=1e-5
    )
    with torch.no_grad():
        model[0].weight.copy_(layers["0.weight"])
        model[2].weight.copy_(layers["2.weight"])
    np.testing.assert_allclose(
        dense_outputs(folder / "out.onnx", {name: x.numpy()}), model(x).detach().numpy(), atol=1e-5
    )
    assert spm("expand", cwd=folder).returncode == 0
    dense = load_file(folder / "model.dense.safetensors")
    assert {name: tuple(x.shape) for name, x in dense.items()} == {
        name: tuple(x.shape) for name, x in model.state_dict().items()
    }


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("run",)


def rewritten(path: Path, ending: str, change: object) -> None:
    """Write the archive again with one entry changed; its ending names it."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, change(content) if name.endswith(ending) else content)  # type: ignore[operator]


def pickled(content: bytes) -> bytes:
    value = json.loads(content)
    value["config"]["0.weight"]["use_pickle"] = True
    return json.dumps(value).encode()


def loaded_again(content: bytes) -> bytes:
    return content.replace(b"torch.ops.aten.relu.default", b"torch.load")


def evil_inputs(content: bytes) -> bytes:
    buffer = io.BytesIO()
    torch.save(Evil(), buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("ending", "change", "words"),
    [
        ("weights_config.json", pickled, "'0.weight' is stored as a pickle, which can run code and is not loaded"),
        ("model.json", loaded_again, "its graph calls 'torch.load', which is no operator"),
        ("sample_inputs/model.pt", evil_inputs, "its sample inputs are not plain tensors, and are not loaded"),
        ("weights_config.json", lambda content: b"{}", "is not a whole program of torch.export"),
        ("models/model.json", lambda content: content[:100], "is not a whole program of torch.export"),
        ("archive_format", lambda content: b"pt3", "is not a whole program of torch.export"),
    ],
)
def test_a_program_that_would_run_code_is_refused(folder: Path, ending: str, change: object, words: str) -> None:
    save_program(folder / "model.pt2")
    rewritten(folder / "model.pt2", ending, change)
    run = spm("fit", "model.pt2", "--steps", "1", "--quiet", cwd=folder)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: model.pt2: ")
    assert words in line
    assert "run" not in run.stdout


def test_other_files_of_that_ending_are_refused(folder: Path) -> None:
    of_export = "is not a whole program of torch.export"
    for content, words in ((b"", of_export), (b"no archive", of_export), (pickle.dumps(Evil()), "so it is not loaded")):
        (folder / "model.pt2").write_bytes(content)
        run = spm("fit", "model.pt2", cwd=folder)
        assert run.returncode == 1
        (line,) = run.stderr.splitlines()
        assert words in line
        assert "run" not in run.stdout


def test_what_a_function_builds_is_fitted_exported_and_trained(folder: Path) -> None:
    factory = ("--factory", "nets:build")
    run = spm("fit", *factory, "--stages", "6", "--steps", "20", "--eval", "nets:score", "--quiet", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert "score: original" in run.stdout
    path = folder / "nets.spm.safetensors"
    assert [layer.name for layer in read_artifact(path).layers] == ["first.weight", "second.weight"]
    # What an artifact names is not imported unless the user says so.
    refused = spm("export", "--onnx", "out.onnx", cwd=folder)
    assert refused.returncode == 1
    assert refused.stderr.splitlines() == [
        "error: nets.spm.safetensors: was fitted from what nets:build builds; to run that code again, say "
        "--factory nets:build"
    ]
    run = spm("export", "--onnx", "out.onnx", "--lowering", "stages", *factory, cwd=folder)
    assert run.returncode == 0, run.stderr
    draw = torch.Generator().manual_seed(0)
    np.savez(
        folder / "data.npz",
        x=torch.randn(64, 64, generator=draw).numpy(),
        scale=torch.ones(64, 1).numpy(),
    )
    run = spm("distill", "--calibration", "data.npz", "--steps", "12", "--batch", "8", *factory, "--quiet", cwd=folder)
    assert run.returncode == 0, run.stderr
    run = spm(
        "fit", *factory, "--calibration", "data.npz", "--steps", "10", "-o", "c.spm.safetensors", "--json", cwd=folder
    )
    assert run.returncode == 0, run.stderr
    assert all(layer["output_error"] < 1 for layer in json.loads(run.stdout)["layers"])
    assert spm("expand", "nets.spm.safetensors", cwd=folder).returncode == 0


def test_python_loads_what_a_function_builds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spm("fit", "--factory", "nets:build", "--steps", "5", "--quiet", cwd=folder).returncode == 0
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    model = load("nets.spm.safetensors", factory="nets:build")
    assert isinstance(model.first, SPMLinear)
    assert model(torch.randn(2, 64), torch.ones(2, 1)).shape == (2, 48)


def test_weights_are_put_into_what_a_function_builds(folder: Path) -> None:
    torch.manual_seed(1)
    values = {"first.weight": torch.randn(96, 64), "first.bias": torch.zeros(96)}
    values |= {"second.weight": torch.randn(48, 96), "second.bias": torch.zeros(48)}
    values |= {"norm.weight": torch.ones(48), "norm.bias": torch.zeros(48)}
    save_file(values, folder / "w.safetensors")
    factory = ("--factory", "nets:build")
    assert spm("fit", "w.safetensors", *factory, "--steps", "5", "--quiet", cwd=folder).returncode == 0
    run = spm("export", "--onnx", "out.onnx", "--lowering", "dense", "--dense", "d.onnx", *factory, cwd=folder)
    assert run.returncode == 0, run.stderr
    x, scale = torch.randn(4, 64), torch.ones(4, 1)
    hidden = torch.relu(x @ values["first.weight"].T) @ values["second.weight"].T
    expected = nn.functional.layer_norm(hidden, (48,))
    found = dense_outputs(folder / "d.onnx", {"x": x.numpy(), "scale": scale.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    save_file({"first.weight": values["first.weight"]}, folder / "w.safetensors")
    wrong = spm("fit", "w.safetensors", *factory, cwd=folder)
    assert wrong.returncode == 1
    assert "does not fit what --factory nets:build builds" in wrong.stderr


def test_a_model_that_cannot_be_exported_is_one_line(folder: Path) -> None:
    with (folder / "nets.py").open("a") as file:
        file.write(
            "class Odd(Net):\n    def forward(self, x, scale):\n"
            "        return self.first(x) if float(x.sum()) > 0 else self.first(-x)\n\n"
            "def odd():\n    torch.manual_seed(0)\n"
            "    return Odd(), {'x': torch.randn(3, 64), 'scale': torch.ones(3, 1)}\n"
        )
    assert spm("fit", "--factory", "nets:odd", "--steps", "5", "--quiet", cwd=folder).returncode == 0
    run = spm("export", "--onnx", "out.onnx", "--factory", "nets:odd", cwd=folder)
    assert run.returncode == 1
    (line,) = run.stderr.splitlines()
    assert line.startswith("error: torch.onnx.export cannot export the model (")
    assert line.endswith("give the dense model's graph with --graph dense.onnx")


def test_a_factory_without_inputs_needs_a_graph(folder: Path) -> None:
    factory = ("--factory", "nets:without_example")
    assert spm("fit", *factory, "--steps", "5", "--quiet", cwd=folder).returncode == 0
    run = spm("export", "--onnx", "out.onnx", *factory, cwd=folder)
    assert run.returncode == 1
    assert "gives no example inputs to export with" in run.stderr


def test_a_weight_of_no_linear_layer_is_said_not_to_be_trained(folder: Path) -> None:
    with (folder / "nets.py").open("a") as file:
        file.write(
            "class Attention(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
            "        self.a, self.f = nn.MultiheadAttention(32, 2, batch_first=True), nn.Linear(32, 48)\n"
            "        self.norm = nn.BatchNorm1d(48)\n\n"  # a tensor of no dimensions beside the weights
            "    def forward(self, x, mask):\n"
            "        y, w = self.a(x, x, x, key_padding_mask=mask)\n"
            "        return self.norm(self.f(y).mean(1)), w\n\n"
            "def attention():\n    torch.manual_seed(0)\n"
            "    return Attention(), {'x': torch.randn(3, 5, 32), 'mask': torch.zeros(3, 5, dtype=torch.bool)}\n"
        )
    draw = torch.Generator().manual_seed(0)
    np.savez(folder / "data.npz", x=torch.randn(32, 5, 32, generator=draw).numpy(), mask=np.zeros((32, 5), bool))
    factory = ("--factory", "nets:attention")
    assert spm("fit", *factory, "--stages", "4", "--steps", "5", "--bits", "32", "--quiet", cwd=folder).returncode == 0
    train = ("distill", "--calibration", "data.npz", "--steps", "2", "--batch", "8")
    run = spm(*train, *factory, "-o", "t.spm.safetensors", cwd=folder)
    assert run.returncode == 0, run.stderr
    assert "a.in_proj_weight: not trained, as no linear layer has it as its own weight; kept as fitted" in run.stderr
    before, after = (read_artifact(folder / f"{name}.spm.safetensors").layers for name in ("nets", "t"))
    assert torch.equal(before[0].operator.to_dense(), after[0].operator.to_dense())
    assert not torch.equal(before[2].operator.to_dense(), after[2].operator.to_dense())
    assert (
        "train its SPM layers further before use (distill)" in spm("report", "nets.spm.safetensors", cwd=folder).stdout
    )


def test_what_has_no_live_model_is_not_told_to_be_trained(folder: Path) -> None:
    model = save_program(folder / "model.pt2")
    save_file(model.state_dict(), folder / "weights.safetensors")
    said = []
    for name in ("weights.safetensors", "model.pt2"):
        run = spm("fit", name, "--stages", "2", "--steps", "1", cwd=folder)
        said.append(" ".join(run.stdout.split()))
    assert "or fit its Hugging Face folder, factory, ONNX model or .pt2, which distill can train" in said[0]
    assert "train its SPM layers further before use (distill)" in said[1]


def test_a_program_is_trained_and_exported(folder: Path) -> None:
    save_program(folder / "model.pt2")
    fit = spm("fit", "model.pt2", "--stages", "4", "--block", "8", "--steps", "10", "--quiet", cwd=folder)
    assert fit.returncode == 0, fit.stderr
    draw = np.random.default_rng(0)
    data = draw.standard_normal((200, 6)) @ draw.standard_normal((6, 64))
    np.savez(folder / "data.npz", input=data.astype(np.float32))
    command = ["distill", "model.spm.safetensors", "--calibration", "data.npz", "--steps", "30", "--batch", "16"]
    run = spm(*command, "--check-every", "10", "--rate", "1e-2", "--json", "--quiet", cwd=folder)
    assert run.returncode == 0, run.stderr
    recovery = json.loads(run.stdout)["recovery"]
    assert recovery["after"] > recovery["before"]
    run = spm("export", "model.recovered.spm.safetensors", "--onnx", "out.onnx", "--lowering", "blocks", cwd=folder)
    assert run.returncode == 0, run.stderr
