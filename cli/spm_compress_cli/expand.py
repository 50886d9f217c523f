"""`spm-compress expand`."""

from __future__ import annotations

from pathlib import Path

import click

from spm_compress_cli.interruption import if_interrupted, written_since
from spm_compress_cli.output import OutputFile
from spm_compress_cli.verbosity import Verbosity, verbosity_options


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@click.option("-o", "--output", type=OutputFile(), help="File to write.  [default: NAME.dense.safetensors here]")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@verbosity_options
def expand(artifact: Path | None, output: Path | None, as_json: bool, verbosity: Verbosity) -> None:
    """Write plain dense safetensors that the original framework loads: same names, shapes and dtypes.

    What was not replaced comes back bit for bit; quantized tensors of a GGUF file come back as float32. Without
    ARTIFACT, the one *.spm.safetensors in the working directory is taken.
    """
    from spm_compress.checkpoint import SUFFIX, find_artifact, keep_apart, read_artifact, source_files, write_tensors
    from spm_compress.compress import expand as expanded
    from spm_compress.report import expansion_json
    from spm_compress.units import bytes_text
    from spm_compress_cli.console import results_console
    from spm_compress_cli.progress import message
    from spm_compress_cli.tables import print_json

    path = artifact or find_artifact(Path())
    fitted = read_artifact(path)
    out = output or Path(f"{path.name.removesuffix(SUFFIX)}.dense.safetensors")
    keep_apart("--output", out, [path, *source_files(fitted, path)])
    if_interrupted(written_since([out]))
    found = expanded(fitted)
    for name in found.lost:
        message(f"{name}: has no bias in the original model; what calibration added to it is left out", verbosity)
    if found.decoded:
        types = ", ".join(sorted(set(found.decoded.values())))
        message(f"{len(found.decoded)} tensors were quantized ({types}); they are written as float32", verbosity)
    write_tensors(found.tensors, out)
    if as_json:
        print_json(expansion_json(found, out))
        return
    results_console().print(f"{out}: {len(found.tensors)} tensors, {bytes_text(out.stat().st_size)}", soft_wrap=True)
