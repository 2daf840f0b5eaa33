"""Sizes have three significant digits, also at the boundaries between units."""

from __future__ import annotations

import pytest

from farshore.reports.units import ratio, share, size


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (9_994, "9.99 kB"),
        (9_995, "10.0 kB"),
        (99_949, "99.9 kB"),
        (99_950, "100 kB"),
        (999_499, "999 kB"),
        (999_500, "1.00 MB"),
        (22_713_216 * 4, "90.9 MB"),
        (10**18, "1000 PB"),
        (-1500, "-1.50 kB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


def test_ratio_and_share() -> None:
    assert [ratio(v) for v in (None, 1.0, 9.994, 96.04, 999.9, 1536.2)] == [
        "–",
        "1.00x",
        "9.99x",
        "96.0x",
        "999.9x",
        "1,536x",
    ]
    assert [share(v) for v in (None, 0.0134, 1.0)] == ["–", "1.3 %", "100.0 %"]
