"""The report of MiniLM in headless Chromium: it opens without an error, sorts, filters, and follows the theme.

Run by `make test-web`. The screenshots are kept where SCREENSHOTS says.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from attached_frontier import FRONTIER

ROOT = Path(__file__).resolve().parent.parent.parent
SCRIPT = Path(__file__).with_name("open_report.mjs")
MODULES = ROOT / "examples" / "browser" / "node_modules"
PUPPETEER = MODULES / "puppeteer-core" / "lib" / "esm" / "puppeteer" / "puppeteer-core.js"


def test_the_report_of_minilm(minilm: Path, chromium: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "spm_compress_cli"]
    (tmp_path / "frontier.json").write_text(json.dumps(FRONTIER, indent=2), encoding="utf-8")
    for arguments in (
        [
            "fit",
            str(minilm),
            "--include",
            "encoder.layer.[0-2].*",
            "--steps",
            "20",
            "-o",
            "m.spm.safetensors",
            "--quiet",
        ],
        ["report", "--html", "report.html", "--with", "frontier.json"],
    ):
        subprocess.run([*command, *arguments], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    folder = os.environ.get("SCREENSHOTS", str(tmp_path))
    run = subprocess.run(
        ["node", str(SCRIPT), chromium, str(PUPPETEER), str(tmp_path / "report.html"), folder],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["errors"] == []
    assert [url for url in seen["requests"] if not url.startswith(("file:", "data:"))] == []
    for ascending, descending in seen["sorted"].values():
        assert len(ascending) == 18
        assert descending != ascending
        assert sorted(descending) == sorted(ascending)
    names, errors = seen["sorted"]["0"][0], seen["sorted"]["7"][0]
    assert names == sorted(names)
    assert [float(error) for error in errors] == sorted(float(error) for error in errors)
    assert len(seen["filtered"]) == 3
    assert all(".query." in name for name in seen["filtered"])
    assert all(light != dark for light, dark in zip(seen["colours"]["light"], seen["colours"]["dark"], strict=True))
    assert all(pixels <= 0 for pixels in seen["overflow"].values())
    for width, seen_at in seen["frontier"].items():
        assert seen_at["shown"]
        assert seen_at["right"] <= int(width), "the table and the pictures are as wide as the screen at most"
        assert seen_at["beside"] == (int(width) > 700)
    assert (Path(folder) / "print.pdf").stat().st_size > 10_000
