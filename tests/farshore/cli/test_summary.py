"""Formatting of result values."""

from __future__ import annotations

import pytest

from farshore.cli.summary import format_value


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.74504, "0.7450"),
        (19621888, "19,621,888"),
        (True, "yes"),
        ({"edge": 1200, "cloud": 7}, "edge 1,200, cloud 7"),
        (
            [{"step": 30, "accuracy": 0.5}, {"step": 9, "accuracy": None}],
            "step 30, accuracy 0.5000; step 9, accuracy –",
        ),
        ([], "–"),
        ("accuracy", "accuracy"),
    ],
)
def test_result_values_are_formatted_without_brackets(value: object, text: str) -> None:
    assert format_value(value) == text
