"""`python -m cli` from a checkout: the command line without installing it."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from spm_compress_cli.main import main

main()
