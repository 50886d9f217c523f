"""`spm-compress init`."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from spm_compress_cli.config import option_key
from spm_compress_cli.factory import factory_option
from spm_compress_cli.interruption import if_interrupted, written_since
from spm_compress_cli.opening import key_option, open_model
from spm_compress_cli.output import OutputFile
from spm_compress_cli.printable import printable
from spm_compress_cli.verbosity import Verbosity, verbosity_options

if TYPE_CHECKING:
    from spm_compress.compress import Inspection
    from spm_compress.compress.inspection import LayerInspection

# The commands that a model goes through, and the parameters that belong to one call instead.
_COMMANDS = ("compress", "fit", "distill", "export", "verify", "bench")
_LEFT_OUT = ("json", "quiet", "verbose", "dry-run", "refit", "model", "artifact", "factory", "key")
_KINDS = {"integer": "N", "integer range": "N", "float": "X", "float range": "X"}


@click.command()
@click.argument("model", type=click.Path(path_type=Path), required=False)
@factory_option
@key_option
@click.option("-o", "--output", type=OutputFile(), default="spm.toml", show_default=True, help="File to write.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
@click.pass_context
@verbosity_options
def init(
    context: click.Context,
    *,
    model: Path | None,
    factory: str | None,
    key: str | None,
    output: Path,
    force: bool,
    verbosity: Verbosity,
) -> None:
    """Write a configuration for MODEL: every option with its default, and what `inspect` says of the weights.

    Use it with: spm-compress fit --config spm.toml
    """
    from spm_compress.checkpoint import files_of, keep_apart, require_file_name
    from spm_compress.checkpoint.files import write_whole
    from spm_compress.compress import inspect_model
    from spm_compress.errors import UsageError
    from spm_compress_cli.console import results_console

    require_file_name("--output", output)
    if output.exists() and not force:
        raise UsageError(f"{output}: is there already; give --force to write over it, or another name with --output")
    source = open_model(model, factory, key, Verbosity.NORMAL)
    keep_apart("--output", output, files_of(source))
    if_interrupted(written_since([output]))
    inspection = inspect_model(source, probe_steps=0)
    assert context.parent is not None
    commands = getattr(context.parent.command, "commands", {})
    given = {"model": model, "factory": factory, "key": key}
    named = {name: str(value) for name, value in given.items() if value is not None}
    lines = [f"# spm-compress: {printable(' '.join(named.values()))}", "#"]
    lines += [*_seen(inspection), "#"]
    lines += [
        "# Lines that begin with # change nothing: they say the default, or in capitals what kind of value it takes."
    ]
    lines += ["# The command line goes before this file. Paths are taken from the working directory.", ""]
    for name in _COMMANDS:
        lines += [f"[{name}]"]
        if name in ("compress", "fit"):
            lines += [f"{key} = {_toml(value)}" for key, value in named.items()]
        lines += [*_options(commands[name]), ""]
    with write_whole(output) as temporary:
        try:
            temporary.write_text("\n".join(lines), encoding="utf-8")
        except UnicodeEncodeError as error:
            raise UsageError(f"{model}: is no name in Unicode, as a configuration has them; rename it") from error
    results_console().print(
        f"{output}: {len(inspection.layers)} weights looked at; next: spm-compress fit --config {output}"
    )


def _seen(inspection: Inspection) -> Iterator[str]:
    """Yield comments: the weights of one role and shape by a glob that --include takes, and what to expect of them."""
    yield f"# {len(inspection.layers)} weights can be replaced, {len(inspection.kept)} tensors stay as they are."
    alike: dict[tuple[str, tuple[int, int]], list[LayerInspection]] = {}
    for layer in inspection.layers:
        # Not a bare star, which would reach over dots: *.output of layers would match *.attention.output too.
        alike.setdefault((re.sub(r"(?<=\.)\d+(?=\.)", "*[0-9]", layer.name), layer.shape), []).append(layer)
    for (glob, (out, into)), layers in alike.items():
        smallest = [layer.sizes[0] for layer in layers]
        errors = sorted({f"{size.svd_error:.2f}" for size in smallest})
        yield f"#   {printable(glob)}"
        text = (
            f"{len(layers)} of {out}x{into}; the truncated SVD in {smallest[0].share:.0%} of the bytes has an error "
            f"of {' to '.join((errors[0], errors[-1])[: len(errors)])}. "
            f"{printable(layers[0].name)}: {layers[0].verdict}"
        )
        yield from textwrap.wrap(text, 110, initial_indent="#     ", subsequent_indent="#     ")


def _options(command: click.Command) -> Iterator[str]:
    for option in command.params:
        if isinstance(option, click.Option) and option.expose_value and option_key(option) not in _LEFT_OUT:
            yield from textwrap.wrap(str(option.help), 110, initial_indent="# ", subsequent_indent="# ")
            yield f"# {option_key(option)} = {_example(option)}"


def _example(option: click.Option) -> str:
    """Return the default of an option in TOML or, where it has none, the kind of its value as a word in capitals."""
    default = option.to_info_dict().get("default")
    if option.is_flag:
        return _toml(bool(default))
    kind = option.metavar or _KINDS.get(option.type.name, option.type.name.upper())
    if option.multiple:
        return _toml(list(default or [kind]))
    if isinstance(option.type, click.Choice):
        return _toml(default or "|".join(option.type.choices))
    return _toml(default if isinstance(default, (int, float, str)) else kind)


def _toml(value: Any) -> str:
    """Return a string, number, boolean or a list of them, which TOML and JSON write alike, but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
