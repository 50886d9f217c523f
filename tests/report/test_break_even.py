"""The break-even map as data and as a picture."""

from __future__ import annotations

import itertools
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from spm_compress.errors import SpmError, UsageError
from spm_compress.report.break_even import BreakEven, Cell, Setting, break_even_json, check_picture, draw

SETTING = Setting(stages=10, provider="CPUExecutionProvider", threads=2, processor="Some CPU", onnxruntime="1.0")
SLOW = Cell(64, 1, 1.0, 0.5, {"stages": 4.0, "blocks": 2.0})
FAST = Cell(4096, 1, 10.0, 5.0, {"stages": 2.5, "blocks": 0.2})


def test_ratios_are_times_of_dense_over_times_of_the_other() -> None:
    assert (SLOW.best, SLOW.fastest, SLOW.ratio("blocks"), SLOW.ratio("int8")) == ("blocks", "int8", 0.5, 2.0)
    assert (FAST.best, FAST.fastest, FAST.ratio("blocks"), FAST.ratio("float32")) == ("blocks", "blocks", 50.0, 1.0)


def test_json_has_every_cell_and_every_way_to_run_it() -> None:
    value = break_even_json(BreakEven(SETTING, (SLOW, FAST)))
    assert value["schema"] == "spm-compress/break-even/1"
    assert value["setting"]["processor"] == "Some CPU"
    slow, fast = value["cells"]
    assert slow["seconds"] == {"float32": 1.0, "int8": 0.5, "stages": 4.0, "blocks": 2.0}
    assert slow["ratios"] == {"float32": 1.0, "int8": 2.0, "stages": 0.25, "blocks": 0.5}
    assert (fast["features"], fast["batch"], fast["best_lowering"], fast["fastest"]) == (4096, 1, "blocks", "blocks")


@pytest.mark.parametrize("cells", [(SLOW,), (SLOW, FAST), (FAST, SLOW, Cell(64, 8, 1.0, 1.0, {"stages": 1.0}))])
def test_the_same_map_gives_the_same_svg(cells: tuple[Cell, ...], tmp_path: Path) -> None:
    found = BreakEven(SETTING, cells)
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    draw(found, first)
    draw(found, second)
    assert first.read_bytes() == second.read_bytes()
    assert ElementTree.parse(first).getroot().tag.endswith("svg")
    assert {path.name for path in tmp_path.iterdir()} == {"first.svg", "second.svg"}


def test_every_cell_says_its_ratio_its_lowering_and_a_faster_int8(tmp_path: Path) -> None:
    draw(BreakEven(SETTING, (SLOW, FAST)), tmp_path / "map.svg")
    # matplotlib writes glyphs as paths, and each text beside them as a comment
    texts = [text.strip() for text in re.findall(r"<!--(.*?)-->", (tmp_path / "map.svg").read_text(), re.DOTALL)]
    for text in ("0.50x", "50.0x", "dense int8: 2.00x", "64", "4,096"):
        assert text in texts
    assert texts.count("blocks") == 2
    assert not any("dense int8: 2.00x" in text for text in texts if text != "dense int8: 2.00x")
    assert texts.count("dense int8: 2.00x") == 1
    assert any("Some CPU, 2 threads" in text for text in texts)


def test_a_png_can_be_had_too(tmp_path: Path) -> None:
    cells = tuple(Cell(n, b, 1.0, 1.0, {"stages": 1.0}) for n, b in itertools.product((8, 16), (1, 2)))
    draw(BreakEven(SETTING, cells), tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_known_beforehand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"`picture` .*map\.jpg: the name must end in \.svg or \.png"):
        check_picture(tmp_path / "map.jpg")
    with pytest.raises(SpmError, match="there is no folder"):
        check_picture(tmp_path / "absent" / "map.svg")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SpmError, match=r"install it with: pip install 'spm-compress\[report\]'"):
        check_picture(tmp_path / "map.svg")
