"""`python -m spm_compress_cli`."""

from spm_compress_cli.main import main

main()
