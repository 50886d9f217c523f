"""The report as a page: what it says, and that it needs nothing else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from attached_frontier import FRONTIER
from safetensors.torch import save_file
from untraced import unmeasured

from spm_compress import CompressSettings, FitSettings, fit_model, open_source, write_artifact
from spm_compress.checkpoint import Artifact
from spm_compress.errors import SpmError, UsageError
from spm_compress.report import Attachments, read_attachments, summarize, write_page

LOG = [{"step": i, "stage": "outputs", "loss": 1 / i, "held_out": i / 4} for i in (1, 2, 3)]
NAME = "<b>&.weight"


class Page(HTMLParser):
    """Cells of each table by its id, links to elsewhere, pictures by the id of their figure, and all text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.links: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.links += [str(given[key]) for key in ("src", "href") if key in given]
        if tag == "table":
            self.rows = self.tables.setdefault(str(given.get("id")), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
        elif tag == "figure":
            self.pictures.append(str(given["id"]))

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self.rows = []

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Path]:
    """An artifact whose sizes were planned, one weight of it named so that a page has to escape it."""
    folder = tmp_path_factory.mktemp("planned")
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(64, 64, generator=draw) for name in (NAME, "b.weight")}
    save_file({**weights, "bias": torch.ones(64)}, folder / "m.safetensors")
    settings = CompressSettings(FitSettings(steps=5, block=8), budget=0.5)
    artifact = fit_model(open_source(folder / "m.safetensors"), settings, beside=folder)
    write_artifact(artifact, folder / "m.spm.safetensors")
    return artifact, folder / "m.spm.safetensors"


def page_of(artifact: Artifact, path: Path, attached: Attachments | None = None) -> Page:
    out = path.with_name("report.html")
    write_page(artifact, summarize(artifact, path), path.name, out, attached or Attachments())
    return Page(out.read_text(encoding="utf-8"))


def test_its_figures_are_those_of_the_report(planned: tuple[Artifact, Path]) -> None:
    artifact, path = planned
    savings, page = summarize(artifact, path), page_of(*planned)
    _, *rows = page.tables["layers"]
    assert [row[0] for row in rows] == [layer.name for layer in savings.layers]
    assert NAME in [row[0] for row in rows]
    for row, layer in zip(rows, savings.layers, strict=True):
        assert row[2] == layer.form_text
        assert row[3] == f"{layer.parameters.after:,}"
        assert row[6:9] == [f"{layer.bits:.2f}", f"{layer.error:.3f}", f"{layer.svd_error:.3f}"]
    assert page.tables["totals"][1][1:3] == [
        f"{savings.fitted_parameters.before:,}",
        f"{savings.fitted_parameters.after:,}",
    ]
    assert [row[0] for row in page.tables["kept"][1:]] == [kept.name for kept in savings.kept]
    assert savings.verdict in "".join(page.words)
    digest = next(iter(artifact.source["files"].values()))
    assert digest in page.words


def test_it_needs_nothing_from_elsewhere(planned: tuple[Artifact, Path]) -> None:
    page = page_of(*planned)
    assert page.links == ["data:,"]
    text = planned[1].with_name("report.html").read_text(encoding="utf-8")
    assert not re.search(r"@import|url\((?!#)", text)


def test_it_has_a_picture_for_everything_that_was_measured(planned: tuple[Artifact, Path], tmp_path: Path) -> None:
    artifact, path = planned
    assert page_of(*planned).pictures == ["errors", "curves"]
    assert page_of(replace(artifact, curves=None), path).pictures == ["errors"]
    command = [sys.executable, "-m", "spm_compress_cli"]
    model = path.with_name("m.safetensors")
    for name, arguments in (
        ("inspect.json", ["inspect", str(model), "--probe-steps", "0"]),
        ("sweep.json", ["bench", "--sweep", "--features", "64", "--batch", "1", "--repeats", "3", "--seconds", "0.1"]),
    ):
        run = subprocess.run(
            [*command, *arguments, "--json"], env=unmeasured(), capture_output=True, text=True, check=True
        )
        (tmp_path / name).write_text(run.stdout)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LOG))
    attached = read_attachments([tmp_path / "inspect.json", tmp_path / "sweep.json", tmp_path / "log.jsonl"])
    page = page_of(artifact, path, attached)
    assert page.pictures == ["errors", "curves", "spectra", "training", "break-even"]


def test_a_model_of_which_nothing_was_replaced_has_a_page_too(planned: tuple[Artifact, Path]) -> None:
    page = page_of(replace(planned[0], layers=(), curves=None), planned[1])
    assert page.pictures == []
    assert "No weight was replaced" in "".join(page.words)


def test_a_frontier_stands_first_as_two_pictures_and_a_table(planned: tuple[Artifact, Path], tmp_path: Path) -> None:
    artifact, path = planned
    (tmp_path / "frontier.json").write_text(json.dumps(FRONTIER, indent=2))
    page = page_of(artifact, path, read_attachments([tmp_path / "frontier.json"]))
    assert page.pictures == ["frontier-bytes", "frontier-latency", "errors", "curves"]
    assert list(page.tables)[:2] == ["frontier", "totals"]
    heading, *rows = page.tables["frontier"]
    assert heading == ["file", "bytes", "agreement", "ms at 1 x 16", "ms at 8 x 128", "load", "memory"]
    assert [row[0] for row in rows] == ["float32", "int8 <b>", "ours, large", "ours"]
    assert rows[3][1:] == ["9.90 MB", "0.950", "8.40", "75.60", "0.25 s", "19.80 MB"]
    words = "".join(page.words)
    assert "ours, large is dominated by int8 <b>: no larger, no slower" in words
    assert "int4 was left out: no product & no table" in words
    assert words.count(" is dominated by ") == 1


def test_the_pictures_of_a_frontier_join_ours_and_mark_each_rival(planned: tuple[Artifact, Path]) -> None:
    artifact, path = planned
    page_of(artifact, path, Attachments(frontier=FRONTIER))
    text = path.with_name("report.html").read_text(encoding="utf-8")
    for name, label in (("frontier-bytes", "MB"), ("frontier-latency", "ms a run, 8 x 128")):
        picture = text[text.index(f'<figure id="{name}"') :]
        picture = picture[: picture.index("</figure>")]
        assert [each in picture for each in (label, "ours", "float32", "int8 &lt;b&gt;")] == [True] * 4
        curve, _legend = re.findall(r'<path d="(M [^"]*)"[^>]*style="fill: none; stroke: var\(--spm\)', picture)
        points = [tuple(map(float, point.split())) for point in re.split("[ML]", curve) if point.strip()]
        assert len(points) == 2
        assert points[0][0] < points[1][0], "the smaller and faster one is on the left"
        assert points[0][1] > points[1][1], "and the one that agrees more is above"
    scored = [{**each, "score": 0.5} for each in FRONTIER["standings"]]
    page = page_of(artifact, path, Attachments(frontier={**FRONTIER, "standings": scored}))
    assert page.tables["frontier"][0][3] == "score"
    assert page.tables["frontier"][1][3] == "0.5"


@pytest.mark.parametrize("lost", [key for key in FRONTIER if key not in ("schema", "left_out")])
def test_a_damaged_frontier_is_refused(lost: str, planned: tuple[Artifact, Path]) -> None:
    for broken in ({k: v for k, v in FRONTIER.items() if k != lost}, {**FRONTIER, lost: []}):
        if broken.get(lost) == [] and lost == "onnxruntime":
            continue  # only said
        with pytest.raises(
            UsageError, match=r"`attached`: what is called a frontier is damaged \(.*\); write it again"
        ):
            page_of(*planned, Attachments(frontier=broken))


def test_the_same_report_gives_the_same_bytes(planned: tuple[Artifact, Path]) -> None:
    first = (page_of(*planned), planned[1].with_name("report.html").read_bytes())[1]
    assert (page_of(*planned), planned[1].with_name("report.html").read_bytes())[1] == first


def test_what_is_attached_must_be_known(tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text('{\n  "schema": "spm-compress/report/1"\n}')
    with pytest.raises(UsageError, match=r"is spm-compress/report/1; give the JSON of an inspection, a bench or"):
        read_attachments([tmp_path / "other.json"])
    (tmp_path / "empty.json").touch()
    with pytest.raises(SpmError, match="holds no JSON object"):
        read_attachments([tmp_path / "empty.json"])
