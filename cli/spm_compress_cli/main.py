"""The `spm-compress` command and the one boundary where errors become exit codes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

import click

import spm_compress
from spm_compress.errors import SpmError, UsageError
from spm_compress_cli.bench import bench
from spm_compress_cli.compress import compress
from spm_compress_cli.config import add_config
from spm_compress_cli.diff import diff
from spm_compress_cli.distill import distill
from spm_compress_cli.expand import expand
from spm_compress_cli.export import export
from spm_compress_cli.fit import fit
from spm_compress_cli.flags import with_flags
from spm_compress_cli.init import init
from spm_compress_cli.inspect import inspect
from spm_compress_cli.report import report
from spm_compress_cli.streams import guarded_streams, say
from spm_compress_cli.verify import verify

_FAILED, _WRONG_USAGE = 1, 2


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(spm_compress.__version__, prog_name="spm-compress")
def cli() -> None:
    """Replace a trained model's dense weights by Stagewise Pairwise Mixers and export it to ONNX.

    \b
    spm-compress compress MODEL -o out.onnx --budget 9MB --calibration texts.txt
    spm-compress inspect model.safetensors
    spm-compress init model.safetensors
    spm-compress fit model.safetensors --stages 10
    spm-compress distill --calibration texts.txt
    spm-compress report
    spm-compress diff a.spm.safetensors b.spm.safetensors
    spm-compress export --onnx out.onnx
    spm-compress verify out.onnx --against dense.onnx
    spm-compress bench out.onnx --against dense.onnx
    spm-compress expand

    Results go to stdout, progress and messages to stderr. Exit code 0: done; 1: failed; 2: wrong usage.
    """


cli.add_command(compress)
cli.add_command(inspect)
cli.add_command(init)
cli.add_command(fit)
cli.add_command(distill)
cli.add_command(report)
cli.add_command(diff)
cli.add_command(expand)
cli.add_command(export)
cli.add_command(verify)
cli.add_command(bench)
add_config(cli)


def main() -> None:
    """Run the command line."""
    # Large tensors in large pages, on Linux: torch looks at it at its first tensor. With 4 KiB a page, a step of
    # `distill --train all` on MiniLM waits for thousands of them (docs/measurements.md).
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    with guarded_streams():
        code = _code_of(lambda: cli.main(prog_name="spm-compress", standalone_mode=False))
        code = _code_of(sys.stdout.flush) or code
    # After a Ctrl-C during an exec() of a string, `python -m` ends by SIGINT instead of with this exit code; imports
    # call exec() to make dataclasses. Python forgets the Ctrl-C at the next exec() that ends well, which is this one.
    exec("")
    sys.exit(code)


def _code_of(call: Callable[[], int | None]) -> int:
    """Call it; tell every error that a user can cause in one line."""
    code: int | None
    try:
        code = call()
    except UsageError as error:
        code = _refuse(with_flags(str(error), cli), _WRONG_USAGE)
    except SpmError as error:
        code = _refuse(with_flags(str(error), cli), _FAILED)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        code = error.exit_code
    except click.ClickException as error:
        context = error.ctx if isinstance(error, click.UsageError) else None
        hint = f" (see: {context.command_path} --help)" if context else ""
        code = _refuse(error.format_message() + hint, error.exit_code)
    except OSError as error:  # a name that is too long, a folder that may not be read: no bug
        if error.filename is None:
            raise
        code = _refuse(f"{error.filename}: {error.strerror}; check the name and its permissions", _FAILED)
    except (click.Abort, KeyboardInterrupt):
        code = _refuse("interrupted; nothing was written", _FAILED)
    return code or 0


def _refuse(message: str, code: int) -> int:
    say(f"error: {' '.join(message.split())}")
    return code
