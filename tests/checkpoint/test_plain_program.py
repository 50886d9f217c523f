"""Programs of torch.export that would run code, import modules or fill the memory when torch loads them."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from untraced import unmeasured

from spm_compress import open_source
from spm_compress.checkpoint.plain_program import _is_arithmetic
from spm_compress.checkpoint.program_source import ProgramSource
from spm_compress.errors import SourceError

Entries = list[tuple[str, bytes]]
HARM = "__import__('pathlib').Path('harm.txt').touch()"
SYMBOL = "Symbol('s31', positive=True, integer=True)"
CONFIG = "data/weights/model_weights_config.json"


class Harmful:
    """Would write a file when it is unpickled."""

    def __reduce__(self) -> tuple[object, ...]:
        return (open, ("harm.txt", "w"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Entries:
    """What torch.export.save writes; its one symbol is s31 in every version of torch, so that tests can name it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("plain") / "model.pt2"
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48)).eval()
    program = torch.export.export(model, (torch.randn(3, 64),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, path)
    with zipfile.ZipFile(path) as archive:
        entries = [(name.partition("/")[2], archive.read(name)) for name in archive.namelist()]
    (graph,) = (json.loads(content) for name, content in entries if name == "models/model.json")
    (symbol,) = graph["range_constraints"]
    return [(name, content.replace(symbol.encode(), b"s31")) for name, content in entries]


def write(path: Path, entries: Entries) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries:
            archive.writestr(f"model/{name}", content)


def changed(entries: Entries, of: str, change: Callable[[bytes], bytes]) -> Entries:
    return [(name, change(content) if name == of else content) for name, content in entries]


def in_graph(change: Callable[[str], str]) -> Callable[[Entries], Entries]:
    return lambda entries: changed(entries, "models/model.json", lambda content: change(content.decode()).encode())


def in_value(change: Callable[[Any], object]) -> Callable[[Entries], Entries]:
    def altered(text: str) -> str:
        value = json.loads(text)
        change(value)
        return json.dumps(value)

    return in_graph(altered)


def computed(code: str) -> Callable[[Entries], Entries]:
    return in_graph(lambda text: text.replace(SYMBOL, code))


def signature(value: Any) -> Any:
    return value["graph_module"]["module_call_graph"][0]["signature"]


def harmful_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(Harmful(), buffer)
    return buffer.getvalue()


def pickled_config(content: bytes) -> bytes:
    value = json.loads(content)
    value["config"]["0.weight"]["use_pickle"] = True
    return json.dumps(value).encode()


def twice(entries: Entries, name: str) -> Entries:
    """Another description of the weights goes first, which torch would follow."""
    first = pickled_config(next(content for each, content in entries if each == CONFIG))
    return [(name, first), *changed(entries, "data/weights/weight_0", lambda _: harmful_file())]


def opaque(entries: Entries) -> Entries:
    def described(_: bytes) -> bytes:
        meta = json.loads(next(content for name, content in entries if name == CONFIG))["config"]["0.weight"]
        return json.dumps({"config": {"c": {**meta, "path_name": "opaque_obj_0"}}}).encode()

    changes = changed(entries, "data/constants/model_constants_config.json", described)
    return [*changes, ("data/constants/opaque_obj_0", pickle.dumps(Harmful()))]


def without_room(entries: Entries) -> Entries:
    def described(content: bytes) -> bytes:
        value = json.loads(content)
        meta = value["config"]["0.weight"]["tensor_meta"]
        meta["sizes"], meta["strides"] = [{"as_int": 400_000}] * 2, [{"as_int": 0}] * 2
        return json.dumps(value).encode()

    return changed(entries, CONFIG, described)


def parameter(entries: Entries) -> Entries:
    """The name of a weight becomes source: `getattr(self, "0")`."""
    name = json.dumps(f'0", None) or {HARM} or getattr(self, "0.weight').encode()
    return [
        (each, content.replace(b'"0.weight"', name) if each.endswith(".json") else content) for each, content in entries
    ]


ENUM = json.dumps(json.dumps({"__enum__": True, "fqn": "harm_on_import:X", "name": "x"}))
LIBRARY = ("data/aotinductor/model/a.wrapper.so", b"\x7fELF")


@pytest.mark.parametrize(
    ("attack", "words"),
    [
        (computed(HARM), "its sizes are computed by .* which is no arithmetic"),
        (computed(f"({HARM}, {SYMBOL})[1]"), "its sizes are computed by .* which is no arithmetic"),
        (computed("9**9**9**9"), "its sizes are computed by .* which is no arithmetic"),
        (computed(f"Max({HARM!r}, 1)".replace('"', "")), "its sizes are computed by .* which is no arithmetic"),
        (in_value(lambda value: value["guards_code"].append(HARM)), "its sizes are computed by "),
        (in_graph(lambda text: text.replace('"input"', json.dumps(f"input={HARM}"))), "is no name of a tensor"),
        (
            in_value(lambda value: signature(value).update(forward_arg_names=[f"input={HARM}"])),
            "is no name of a tensor",
        ),
        (
            in_value(lambda v: signature(v).update(in_spec=signature(v)["in_spec"].replace('"null"', ENUM, 1))),
            "its inputs or outputs import Python modules",
        ),
        (parameter, "is no name of a tensor"),
        (
            in_graph(lambda text: text.replace('"torch.ops.aten.relu.default"', '"torch.ops.aten.from_file.default"')),
            "its graph calls 'torch.ops.aten.from_file.default'",
        ),
        (in_graph(lambda text: text.replace('"torch.ops.aten.relu.default"', '"_operator.call"')), "_operator.call"),
        (lambda entries: [*entries, LIBRARY], "holds 'data/aotinductor/model/a.wrapper.so', which torch.export.save"),
        (lambda entries: twice(entries, CONFIG), "weights_config.json' twice, which torch.export.save does not write"),
        (lambda entries: twice(entries, CONFIG.replace("json", "JSON")), "weights_config.JSON', which torch.export"),
        (
            lambda entries: [
                ("data/Sample_inputs/model.pt", harmful_file()) if name.startswith("data/sample") else (name, content)
                for name, content in entries
            ],
            "holds 'data/Sample_inputs/model.pt', which torch.export.save does not write",
        ),
        (opaque, "holds 'data/constants/opaque_obj_0', which torch.export.save does not write"),
        (
            lambda entries: [*entries, ("data/weights/model.pt", harmful_file())],
            "holds 'data/weights/model.pt', which torch.export.save does not write",
        ),
        (without_room, r"tensor '0.weight' of shape \[400000, 400000\] is larger than the 24576 bytes stored for it"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_program_that_would_do_harm_is_refused(
    attack: Callable[[Entries], Entries], words: str, plain: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "harm_on_import.py").write_text("open('harm.txt', 'w')\n")
    write(tmp_path / "model.pt2", attack(plain))
    with pytest.raises(SourceError, match=words) as error:
        open_source(tmp_path / "model.pt2")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "harm.txt").exists()


@pytest.mark.parametrize(
    "text",
    [
        SYMBOL,
        "Add(Mul(Integer(2), Min(Symbol('s17', positive=True, integer=True), Symbol('u0', integer=True))), Integer(1))",
        "Pow(Symbol('s53', positive=True, integer=True), Integer(2))",
        "GreaterThan(Symbol('u0', integer=True), Integer(0))",
        "2*s0 + s1**2 - 1",
        "L['attention_mask'].size()[1] == L['input_ids'].size()[1]",
        "1 + 2*min(L['y'].size()[0], L['x']['k'].size()[0]) <= L['y'].size()[0] % 8",
    ],
)
def test_what_torch_writes_of_sizes_is_arithmetic(text: str) -> None:
    assert _is_arithmetic(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "().__class__",
            "exec('1')",
            "eval(s0)",
            "L.size",
            "L['x'].__class__",
            "L['x'].size(s0)",
            "S('1')",
            "s0('1')",
        ),
        *("Add('1+1', 1)", "'a' + 'b'", "lambda: 1", "[x for x in L]", "1 << 99999", "Pow(2, 99999)", "f(*L)", "1\n+2"),
        *(
            "Symbol('a b')",
            "Symbol('exec(1)')",
            "Pow(Pow(9, 64), 64)",
            "(9**64)**64",
            "__builtins__",
            "a" * 10_001,
            "x!",
        ),
    ],
)
def test_what_is_more_than_arithmetic_is_seen(text: str) -> None:
    assert not _is_arithmetic(text)


class Nested(nn.Module):
    """Inputs and outputs in containers, a buffer, a constant, sizes that are computed."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)
        self.register_buffer("scale", torch.ones(16))
        self.constant = torch.ones(16)

    def forward(self, x: torch.Tensor, others: dict[str, torch.Tensor]) -> dict[str, Any]:
        y = others["y"]
        both = self.linear(torch.cat([x, y]) * self.scale + self.constant)
        return {"a": both[: 2 * min(x.shape[0], y.shape[0]) + 1], "b": [nn.functional.gelu(x, approximate="tanh")]}


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(x.sum() > 0, lambda t: self.linear(t), lambda t: t - 1, (x,))  # type: ignore[no-any-return]


def test_programs_that_torch_writes_are_read(tmp_path: Path) -> None:
    any_size = {0: torch.export.Dim.AUTO}
    inputs = (torch.randn(4, 16), {"y": torch.randn(6, 16)})
    program = torch.export.export(Nested(), inputs, dynamic_shapes={"x": any_size, "others": {"y": any_size}})
    torch.export.save(program, tmp_path / "nested.pt2", extra_files={"notes.txt": "by the user"})
    assert sorted(open_source(tmp_path / "nested.pt2").tensors()) == ["linear.bias", "linear.weight", "scale"]
    torch.export.save(torch.export.export(Branching(), (torch.randn(4, 16),)), tmp_path / "cond.pt2")
    assert sorted(open_source(tmp_path / "cond.pt2").tensors()) == ["linear.bias", "linear.weight"]


def test_a_program_of_transformers_is_read_and_run(bert: Path, tmp_path: Path) -> None:
    """In a process that has not imported transformers, torch does not know what its models return."""
    transformers = pytest.importorskip("transformers")
    model = transformers.BertModel.from_pretrained(bert).eval()
    inputs = {"input_ids": torch.ones(2, 8, dtype=torch.int64), "attention_mask": torch.ones(2, 8, dtype=torch.int64)}
    any_size = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in inputs}
    torch.export.save(torch.export.export(model, (), inputs, dynamic_shapes=any_size), tmp_path / "bert.pt2")
    program = (
        "import sys; from pathlib import Path; from spm_compress import open_source; open_source(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "bert.pt2")]
    run = subprocess.run(command, env=unmeasured(), capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    source = open_source(tmp_path / "bert.pt2")
    assert isinstance(source, ProgramSource)
    with torch.no_grad():
        found = source.program.module()(**inputs)
        torch.testing.assert_close(found.last_hidden_state, model(**inputs).last_hidden_state)
