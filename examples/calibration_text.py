"""Print sentences for calibration: the documentation strings of Python's own library, one sentence a line.

python examples/calibration_text.py 400 > sentences.txt
"""

from __future__ import annotations

import ast
import re
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path


def sentences() -> Iterator[str]:
    """Yield every sentence of 40 to 300 characters once, module by module."""
    seen: set[str] = set()
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                for sentence in re.split(r"(?<=[.!?])\s+", " ".join((ast.get_docstring(node) or "").split())):
                    if 40 <= len(sentence) <= 300 and sentence not in seen:
                        seen.add(sentence)
                        yield sentence


def main() -> None:
    """Take as many as asked for, evenly from the whole library."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 400
    found = list(sentences())
    step = max(1, len(found) // count)
    sys.stdout.write("\n".join(found[::step][:count]) + "\n")


if __name__ == "__main__":
    main()
