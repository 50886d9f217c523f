"""The table of a frontier: whole in a pipe, and on a narrow terminal what matters most."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from spm_compress.pipeline.standing import Frontier, LeftOut, Standing
from spm_compress_cli import frontier_table

FOUND = Frontier(
    ((1, 16), (1, 128), (8, 16), (8, 128)),
    (
        Standing("float32", "original", 90_900_000, 0.46, 158_000_000, (0.019, 0.1, 0.05, 0.7), 1.0, 0.91),
        Standing("int8 per channel", "baseline", 22_900_000, 0.34, 97_000_000, (0.009, 0.06, 0.036, 0.41), 0.9884, 0.9),
        Standing("ours", "ours", 23_000_000, 0.9, 400_000_000, (0.009, 0.06, 0.036, 0.41), 0.98),
    ),
    (LeftOut("int4/32", "no product"),),
    "similarities",
    200,
    {"threads": 1, "batches": (1, 8)},
)


def test_in_a_pipe_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    frontier_table.show_frontier(FOUND, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert " ".join(lines[1].split()) == "file bytes agreement score 1x16 1x128 8x16 8x128 load memory"
    ours = next(line for line in lines if line.startswith(" ours "))
    assert " ".join(ours.split()) == "ours 23.00 MB 0.980 - 9.00 ms 60.0 ms 36.0 ms 410 ms 900 ms 400.00 MB"
    assert "latency: median at batch x sequence, 1 thread, all interleaved" in lines
    assert "ours: dominated by int8 per channel" in lines
    assert lines[-1] == "int4/32: left out (no product)"


def test_on_a_narrow_terminal_bytes_agreement_and_the_largest_size_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    console = Console(file=written, width=60, highlight=False)
    monkeypatch.setattr(frontier_table, "results_console", lambda: console)
    frontier_table.show_frontier(FOUND, as_json=False)
    lines = written.getvalue().splitlines()
    heading = next(line for line in lines if line.startswith(" file"))
    assert {"bytes", "agreement", "score", "8x128"} <= set(heading.split())
    assert "memory" not in heading.split()
    assert max(map(len, lines)) <= 60
    assert any(line.startswith("left out for want of room") for line in lines)


def test_json_is_the_librarys(capsys: pytest.CaptureFixture[str]) -> None:
    frontier_table.show_frontier(FOUND, as_json=True)
    value = json.loads(capsys.readouterr().out)
    assert value["schema"] == "spm-compress/frontier/1"
    assert [each["dominated_by"] for each in value["standings"]] == [[], [], ["int8 per channel"]]
