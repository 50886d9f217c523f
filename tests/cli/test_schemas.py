"""What --json prints, against the schemas in docs/schema."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import jsonschema
import mistake_folders
import pytest

from spm_compress_cli.main import main

ROOT = Path(__file__).parents[2]
SCHEMAS = {path.name.removesuffix(".schema.json"): path for path in (ROOT / "docs" / "schema").iterdir()}
EXPORT = "export bert.spm.safetensors --onnx bert.onnx --threads 1"
COMMANDS = [
    ("compress-1", "compress bert -o small.onnx --budget 80% --calibration texts.txt --threads 1 --sequence 4"),
    ("compress-1", "compress bert -o small.onnx --agreement 0.9 --calibration texts.txt --dry-run"),
    ("report-3", "fit bert --include encoder.* --stages 4 --block 8 --steps 2 --calibration texts.txt"),
    ("report-3", "fit model.safetensors --exclude *"),
    ("report-3", "fit model.safetensors --forms sum,low-rank --stages 8 --block 8 --steps 2 --bits 16"),
    ("report-3", "fit model.safetensors --forms dense --bits 16"),
    ("report-3", "report bert.spm.safetensors"),
    ("report-3", "distill bert.spm.safetensors --calibration texts.txt --steps 4 --check-every 2 --batch 8"),
    ("plan-1", "fit bert --budget 0.5 --block 8 --steps 2 --dry-run"),
    ("inspect-1", "inspect bert --probe-steps 2"),
    ("export-3", f"{EXPORT} --lowering stages --ort bert.ort"),
    ("export-3", f"{EXPORT} --sequence 4"),
    ("expand-1", "expand bert.spm.safetensors"),
    ("verify-1", "verify out.onnx --against dense.onnx --batch 1 --eval code_of_the_user:score"),
    ("bench-1", "bench out.onnx --against dense.onnx --batch 1 --repeats 3 --seconds 0.1"),
    ("bench-1", "bench out.onnx --batch 1 --repeats 3 --seconds 0.1"),
    ("break-even-1", "bench --sweep --features 64 --batch 1 --repeats 3 --seconds 0.1"),
    ("diff-3", "diff mlp.spm.safetensors bert.spm.safetensors"),
]
# What no command prints alone: tests/pipeline/test_frontier.py holds it to its schema.
PARTS = {"frontier-1"}


@pytest.fixture(scope="module")
def filled(bert: Path, texts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("yard")
    mistake_folders.fill(folder, bert, texts)
    return folder


def schema(name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(SCHEMAS[name].read_text(encoding="utf-8"))
    return value


@pytest.mark.parametrize(("name", "arguments"), COMMANDS, ids=[arguments for _, arguments in COMMANDS])
def test_what_is_printed_is_what_the_schema_says(
    name: str,
    arguments: str,
    filled: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(filled, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    quiet = [] if arguments.startswith(("report", "diff")) else ["--quiet"]
    monkeypatch.setattr("sys.argv", ["spm-compress", *arguments.split(), "--json", *quiet])
    with pytest.raises(SystemExit) as end:
        main()
    captured = capfd.readouterr()
    assert not end.value.code, captured.err
    jsonschema.validate(json.loads(captured.out), schema(name))


def test_every_version_that_is_printed_has_a_schema_and_the_other_way_round() -> None:
    sources = [*(ROOT / "spm_compress").rglob("*.py"), *(ROOT / "cli").rglob("*.py")]
    printed = {name for path in sources for name in re.findall(r'"spm-compress/([a-z-]+/\d+)"', path.read_text())}
    assert {name.replace("/", "-") for name in printed} == set(SCHEMAS) == {name for name, _ in COMMANDS} | PARTS
    for name in SCHEMAS:
        jsonschema.Draft202012Validator.check_schema(schema(name))
        assert schema(name)["properties"]["schema"]["const"] == "spm-compress/" + "/".join(name.rsplit("-", 1))


def test_a_key_that_the_schema_does_not_know_is_noticed() -> None:
    value = {"schema": "spm-compress/expand/1", "path": "x", "bytes": 1, "tensors": 1, "biases_left_out": []}
    jsonschema.validate(value, schema("expand-1"))
    for wrong in ({**value, "more": 1}, {key: x for key, x in value.items() if key != "path"}, {**value, "bytes": "1"}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(copy.deepcopy(wrong), schema("expand-1"))
