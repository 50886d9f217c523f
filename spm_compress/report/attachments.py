"""What other commands measured, read back from their JSON to stand in a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spm_compress.errors import SourceError, UsageError, near_misses
from spm_compress.report.break_even import SCHEMA as BREAK_EVEN
from spm_compress.report.results import INSPECTION_SCHEMA

__all__ = ["Attachments", "read_attachments"]

_BENCH = "spm-compress/bench/1"
_FRONTIER = "spm-compress/frontier/1"
_LOG = ("step", "stage", "loss", "held_out")


@dataclass(frozen=True)
class Attachments:
    """JSON values by what made them.

    An inspection, benches (one a file), a sweep, the log of a distillation, a frontier.
    """

    inspection: Mapping[str, Any] | None = None
    benches: tuple[Mapping[str, Any], ...] = ()
    break_even: Mapping[str, Any] | None = None
    training: Sequence[Mapping[str, Any]] = field(default=())
    frontier: Mapping[str, Any] | None = None


def read_attachments(paths: Sequence[Path]) -> Attachments:
    """Read files with the JSON of inspections, benches, sweeps and frontiers, and logs of distillations.

    Raises SourceError for a file that is missing or no JSON, UsageError for JSON of something else.
    """
    inspection: Mapping[str, Any] | None = None
    break_even: Mapping[str, Any] | None = None
    frontier: Mapping[str, Any] | None = None
    benches: list[Mapping[str, Any]] = []
    training: Sequence[Mapping[str, Any]] = ()
    for path in paths:
        values = _values(path)
        match values[0].get("schema"):
            case str(schema) if schema == INSPECTION_SCHEMA:
                inspection = values[0]
            case str(schema) if schema == BREAK_EVEN:
                break_even = values[0]
            case str(schema) if schema == _BENCH:
                benches.append(values[0])
            case str(schema) if schema == _FRONTIER:
                frontier = values[0]
            case None if all(key in value for value in values for key in _LOG):
                training = values
            case other:
                raise UsageError(
                    f"`attached` {path}: is {other or 'no known JSON'}; give the JSON of an inspection, a bench or a "
                    "frontier, or the log of a training"
                )
    return Attachments(inspection, tuple(benches), break_even, training, frontier)


def _values(path: Path) -> list[dict[str, Any]]:
    """Return the one JSON value of a file, or its JSON lines."""
    if not path.is_file():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        raise SourceError(f"`attached` {path}: no such file{near_misses(path.name, beside)}")
    try:
        text = path.read_text(encoding="utf-8")
        values = [json.loads(text)] if text.lstrip().startswith("{\n") else list(map(json.loads, text.splitlines()))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"`attached` {path}: is no JSON ({error}); write it again") from error
    if not values or not all(isinstance(value, dict) for value in values):
        raise SourceError(f"`attached` {path}: holds no JSON object; write it again")
    return values
