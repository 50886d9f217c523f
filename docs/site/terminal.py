"""Draw docs/terminal.svg: the main job on MiniLM, as a terminal of 80 columns shows it.

usage: python docs/site/terminal.py [docs/terminal.svg]

The commands are run for real, in an empty folder; progress is left out.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "cli"))

from pseudo_terminal import in_pseudo_terminal

ROOT = Path(__file__).resolve().parents[2]
COLUMNS = 80
COMMANDS = ("spm-compress compress minilm -o small.onnx --budget 13.5MB --calibration texts.txt --quiet",)
_FONT = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "terminal.svg"
    script = [sys.executable, str(ROOT / "examples" / "fetch_model.py"), "minilm"]
    model = Path(subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())
    sentences = [sys.executable, str(ROOT / "examples" / "calibration_text.py"), "1000"]
    console = Console(record=True, width=COLUMNS, file=Path(os.devnull).open("w"))  # noqa: SIM115
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "minilm").symlink_to(model)
        (Path(folder) / "texts.txt").write_bytes(subprocess.run(sentences, check=True, stdout=subprocess.PIPE).stdout)
        for command in COMMANDS:
            console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
            console.print(Text.from_ansi(shown(command, folder)))
    svg = console.export_svg(title="spm-compress", unique_id="terminal", font_aspect_ratio=0.61)
    # Rich's drawing asks the network for its font; a reader's own will do.
    svg = re.sub(r"@font-face \{[^}]*\}\s*", "", svg).replace("Fira Code, monospace", _FONT)
    out.write_text(svg + "\n", encoding="utf-8")


def shown(command: str, folder: str) -> str:
    """Return what a command writes to a terminal."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "TERM": "xterm-256color", "PATH": path}
    code, written = in_pseudo_terminal(["sh", "-c", command], Path(folder), environment, COLUMNS)
    if code:
        raise SystemExit(f"{command}: failed\n{written}")
    return written.replace("\r\n", "\n")


if __name__ == "__main__":
    main()
