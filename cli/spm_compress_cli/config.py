"""`--config spm.toml` on every command, and `fit --from`: defaults that the command line goes before."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from spm_compress.errors import UsageError, first_line, near_misses

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["add_config", "from_option", "option_key"]


def add_config(group: click.Group) -> None:
    """Give every command of the group the option --config."""
    for command in group.commands.values():
        command.params.append(
            click.Option(
                ["--config"],
                type=click.Path(path_type=Path),
                is_eager=True,
                expose_value=False,
                callback=_configured,
                help="TOML with a table for each command: `[fit]`, then `stages = 20`.",
            )
        )


def from_option(command: Any) -> Any:
    """Add `--from ARTIFACT`, which the command gets as `repeated`; the artifact's settings are its defaults."""
    return click.option(
        "--from",
        "repeated",
        type=click.Path(path_type=Path),
        is_eager=True,
        callback=_repeated,
        help="Repeat the fit of ARTIFACT: its model and its settings, unless given here.",
        metavar="ARTIFACT",
    )(command)


def option_key(parameter: click.Parameter) -> str:
    """Return the name of an option or an argument in a configuration file: `low-rank`."""
    if isinstance(parameter, click.Argument):
        return str(parameter.name)
    return next(name for name in parameter.opts if name.startswith("--")).removeprefix("--")


def _configured(context: click.Context, _: click.Parameter, path: Path | None) -> None:
    if path is None:
        return
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or first_line(error)
        raise UsageError(
            f"--config {path}: cannot be read ({reason}); write one with: spm-compress init MODEL"
        ) from error
    assert context.parent is not None
    known = getattr(context.parent.command, "commands", {})
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"--config {path}: {name!r} stands in no table; put it below its command's name, as [fit]")
        if name not in known:
            raise UsageError(f"--config {path}: [{name}] is no command{near_misses(name, known)}")
        values = _values(path, known[name], table)
        if known[name] is context.command:
            context.default_map = {**(context.default_map or {}), **values}


def _values(path: Path, command: click.Command, table: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of a table by the names of click's parameters; each is tried, so that an error has a place."""
    parameters = {option_key(each): each for each in command.params if each.expose_value}
    values = {}
    for key, value in table.items():
        parameter = parameters.get(key.replace("_", "-"), parameters.get(key))
        if parameter is None:
            raise UsageError(f"--config {path}: [{command.name}] has no option {key!r}{near_misses(key, parameters)}")
        given = _given(parameter, value)
        try:
            parameter.type_cast_value(click.Context(command), given)
        except click.BadParameter as error:
            raise UsageError(f"--config {path}: [{command.name}] {key}: {error.message}") from error
        values[str(parameter.name)] = given
    return values


def _given(parameter: click.Parameter, value: Any) -> Any:
    """Return a TOML value as click would get it from the command line."""
    if getattr(parameter, "multiple", False):
        return [str(each) for each in (value if isinstance(value, list) else [value])]
    if getattr(parameter, "is_flag", False):
        return value
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _repeated(context: click.Context, _: click.Parameter, path: Path | None) -> Path | None:
    if path is None:
        return None
    from spm_compress.checkpoint import read_artifact
    from spm_compress.compress import bits_said

    said = read_artifact(path).settings
    if "refit" in said:
        raise UsageError(f"--from {path}: is made of several fits (--refit); repeat them one after the other")
    values = {key: said.get(key) for key in _ALIKE}
    values |= {key: str(said[key]) for key in ("stages", "low_rank") if key in said}
    values["bits"] = bits_said(said)
    values["forms"] = ",".join(said["forms"]) if "forms" in said else None
    values["layers"] = [
        f"{glob}:" + ",".join(f"{_LAYER.get(key, key)}={_auto(value)}" for key, value in fields.items())
        for glob, fields in said.get("layers", ())
    ]
    if said.get("calibration"):
        name = said["calibration"]["file"]
        values["calibration"] = path.parent / name if (path.parent / name).exists() else Path(name)
    known = {key: value for key, value in values.items() if value is not None}
    context.default_map = {**known, **(context.default_map or {})}  # a configuration goes before it
    return path


# Settings that an artifact and the command line call the same.
_ALIKE = (
    *("budget", "max_error", "sequential", "mixer", "schedule", "block", "steps", "seed"),
    *("include", "exclude", "min_features", "dense_bits", "table_bits"),
)
# Fields of FitSettings by the names that --layer has for them.
_LAYER = {"rank": "low-rank", "forms": "form", "store": "bits"}


def _auto(value: Any) -> Any:
    return "auto" if value is None else ",".join(value) if isinstance(value, list) else value
