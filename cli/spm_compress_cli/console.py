"""rich's consoles on both streams, to which what users name their files and tensors is text and nothing else."""

from __future__ import annotations

import sys
from typing import Any

from rich.console import Console
from rich.text import Text

from spm_compress_cli.printable import printable

__all__ = ["messages_console", "results_console"]

# Nobody's terminal limits what is piped: every column, every line whole.
_PIPED_WIDTH = 10_000


class _PlainConsole(Console):
    """Takes a string for one line without markup or emoji, and escapes what the stream cannot show.

    rich writes controls of its own around it, so this cannot be done later. A `Text` is printed as it is.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text, self.encoding), **{**options, "markup": False, "emoji": False})


def results_console() -> Console:
    """Return where results go."""
    console = _PlainConsole(file=sys.stdout, highlight=False)
    return console if console.is_terminal else _PlainConsole(file=sys.stdout, highlight=False, width=_PIPED_WIDTH)


def messages_console() -> Console:
    """Return where progress and messages go."""
    return _PlainConsole(file=sys.stderr, highlight=False)
