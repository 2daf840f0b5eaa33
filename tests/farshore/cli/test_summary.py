"""Results in plain words."""

from __future__ import annotations

import pytest

from farshore.cli.summary import plain


@pytest.mark.parametrize(
    ("value", "words"),
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
def test_values_of_a_result_are_told_without_brackets(value: object, words: str) -> None:
    assert plain(value) == words
