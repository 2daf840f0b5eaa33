"""Text from peers and files, made safe for terminals and log files."""

from __future__ import annotations

import unicodedata

#: Characters that change the direction of the text around them, so that it reads differently from what it says.
_DIRECTION = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_KEPT = frozenset("\n\t")


def printable(text: str, *, lines: bool = True) -> str:
    r"""Replace control and direction characters by visible escapes such as ``\x1b``.

    Parameters
    ----------
    text : str
    lines : bool
        Keep line breaks and tabs.
    """
    if text.isprintable():  # the common case; false for direction characters, line breaks and tabs
        return text
    kept = _KEPT if lines else frozenset[str]()
    return "".join(c if c in kept or not _harmful(c) else _escape(c) for c in text)


def _harmful(character: str) -> bool:
    return character in _DIRECTION or unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
