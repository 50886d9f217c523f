"""Code that the user named: the only code that is ever run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from spm_compress.errors import UsageError, first_line

__all__ = ["import_function"]


def import_function(option: str, name: str) -> Callable[..., Any]:
    """Import `module:function`; the working directory is searched first, as by `python -m`.

    This runs the module's code. option: that it was given with. Raises UsageError if there is none of that name.
    """
    module_name, _, function_name = name.partition(":")
    if not module_name or not function_name:
        raise UsageError(f"{option} {name}: is not of the form module:function")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"{option} {name}: cannot be imported ({first_line(error)})") from error
    if not callable(found):
        raise UsageError(f"{option} {name}: is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]
