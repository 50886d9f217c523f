"""Print sentences for calibration: the documentation strings of Python's own library, one sentence a line.

python examples/calibration_text.py 400 > sentences.txt    # evenly from the modules at its top
python examples/calibration_text.py all > texts.txt        # every one, packages included, to distill with
"""

from __future__ import annotations

import ast
import contextlib
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def sentences(pattern: str = "*.py") -> Iterator[str]:
    """Yield every sentence of 40 to 300 characters once, module by module; pattern: of files in the library."""
    seen: set[str] = set()
    for module in modules(pattern):
        try:
            tree = ast.parse(module)
        except SyntaxError:  # some of its tests are meant to be broken
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for sentence in split(ast.get_docstring(node) or ""):
                    if sentence not in seen:
                        seen.add(sentence)
                        yield sentence


def modules(pattern: str = "*.py") -> Iterator[str]:
    """Yield the text of every module of Python's own library that is UTF-8; pattern: of files in the library."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob(pattern)):
        if "site-packages" not in path.parts:
            with contextlib.suppress(UnicodeDecodeError):
                yield path.read_text(encoding="utf-8")


def split(text: str) -> Iterator[str]:
    """Yield the sentences of a text that have 40 to 300 characters."""
    yield from (each for each in re.split(r"(?<=[.!?])\s+", " ".join(text.split())) if 40 <= len(each) <= 300)


def main() -> None:
    """Take as many as asked for, evenly, or all."""
    if sys.argv[1:] == ["all"]:
        sys.stdout.write("\n".join(sentences("**/*.py")) + "\n")
        return
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    found = list(sentences())
    step = max(1, len(found) // count)
    sys.stdout.write("\n".join(found[::step][:count]) + "\n")


if __name__ == "__main__":
    main()
