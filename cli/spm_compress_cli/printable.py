"""Names and messages as one line of a terminal can show them."""

from __future__ import annotations

__all__ = ["printable"]


def printable(text: str, encoding: str = "utf-8") -> str:
    r"""Return the text with everything escaped that is no visible character, or none of this encoding.

    What users name their tensors and files can begin a new line, move the cursor, clear the screen or turn the
    direction of writing: "\x1b[2J" comes out as these five characters.
    """
    if not text.isprintable():
        text = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)
    return text.encode(encoding, "backslashreplace").decode(encoding)
