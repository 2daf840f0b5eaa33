"""Text from others reaches terminals without escape sequences."""

from __future__ import annotations

import pytest

from farshore.core.text import printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain – text, ünïcode 中文 🙂", "plain – text, ünïcode 中文 🙂"),
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("a\rb\x08c\x7f\x9b31m", r"a\x0db\x08c\x7f\x9b31m"),
        ("file\u202etxt.exe", r"file\u202etxt.exe"),
        ("lone \ud800 surrogate", r"lone \ud800 surrogate"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert printable(shown) == shown


def test_one_line_stays_one_line() -> None:
    assert printable("a\nb\tc\u2028d", lines=False) == r"a\x0ab\x09c\u2028d"
