"""What a fit has done so far, beside its output: started again, it goes on from there."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout

from spm_compress.checkpoint.files import sweep, write_whole
from spm_compress.compress.cache import FitCache
from spm_compress.errors import ArtifactError, SpmError

__all__ = ["Ledger"]

_RECIPE = "recipe.json"
_LOCK = "lock"


class Ledger:
    """The folder `OUTPUT.ledger`: a recipe, and one small artifact for every weight that is done; a context.

    While it is entered, no other process can enter the same one. It is removed when the context ends well; where it
    ends otherwise, it stays if it holds a fit. Raises SpmError on entry where another run is at work or the folder
    cannot be made, and instead of KeyboardInterrupt, to say what is kept.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self.folder = output.with_name(f"{output.name}.ledger")
        self.fits = FitCache(self.folder)
        self._lock = FileLock(self.folder / _LOCK, timeout=0)

    def __enter__(self) -> Ledger:
        """Lock it, and sweep away what a killed run left unfinished."""
        try:
            if self.output.is_dir():
                raise IsADirectoryError(errno.EISDIR, "it is a folder")
            self.folder.mkdir(exist_ok=True)
            self._lock.acquire()
        except Timeout as error:
            raise SpmError(
                f"{self.output}: another run is writing it; wait until it is done, or name another file with `output`"
            ) from error
        except OSError as error:
            raise SpmError(
                f"{self.output}: cannot be written ({error.strerror}); check the folder's permissions and free space"
            ) from error
        sweep(self.output.parent, self.output.name)
        sweep(self.folder)
        return self

    def begin(self, recipe: Mapping[str, Any]) -> FitCache:
        """Return the fits that were made for this recipe; they are none at first.

        Raises ArtifactError, saying what differs, if the ledger belongs to another one.
        """
        path = self.folder / _RECIPE
        ours = json.loads(json.dumps(recipe))
        if path.exists():
            try:
                theirs = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, OSError):
                theirs = {}
            differ = [line for key in ours for line in _differences(key, theirs.get(key), ours[key])]
            if differ and len(self.fits):
                raise ArtifactError(
                    f"{self.folder}: belongs to an unfinished fit with {'; '.join(differ[:3])}; repeat that command to "
                    "finish it, or delete the folder to begin anew"
                )
        with write_whole(path) as temporary:
            temporary.write_text(json.dumps(ours, indent=1), encoding="utf-8")
        return self.fits

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove it if all went well or nothing is in it; let others in."""
        kept = 0 if kind is None else len(self.fits)
        if not kept:
            for path in self.folder.iterdir():
                path.unlink(missing_ok=True)
        self._lock.release()
        if not kept:
            with contextlib.suppress(OSError):  # by now another run may have entered
                self.folder.rmdir()
        if isinstance(error, KeyboardInterrupt) and kept:
            weights = "1 fitted weight is" if kept == 1 else f"{kept} fitted weights are"
            raise SpmError(f"interrupted; {weights} kept in {self.folder}, and the same command goes on from there")


def _differences(key: str, theirs: Any, ours: Any) -> list[str]:
    """Return `key theirs (now ours)` for every leaf that differs."""
    if theirs == ours:
        return []
    if isinstance(theirs, dict) and isinstance(ours, dict):
        names = sorted({*theirs, *ours})
        return [line for name in names for line in _differences(name, theirs.get(name), ours.get(name))]
    return [f"{key} {_short(theirs)} (now {_short(ours)})"]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
