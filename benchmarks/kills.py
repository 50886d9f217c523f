"""How often a fit that is killed at a random moment loses something: 500 kills, as tests/cli/test_interruption.py has 50.

usage: kills.py [--kills 500] [--seed 1]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "cli"))

from killing import kill_at_random, write_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model.safetensors")
        found = kill_at_random(
            folder,
            options.kills,
            options.seed,
            lambda done: print(f"{done} kills", file=sys.stderr, flush=True) if done % 50 == 0 else None,
        )
    print(
        f"{found.kills} kills in {found.seconds:.0f} s: {found.resumed} of those runs went on from fits of an earlier one, "
        f"{found.whole} left a whole output, {found.kills - found.whole} none; the last run, left alone, ended with the "
        "same bytes"
    )


if __name__ == "__main__":
    main()
