"""Numbers for people: bytes in powers of ten, ratios and shares."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def size(count: int | float) -> str:
    """Bytes with three significant digits: ``999 B``, ``1.00 kB``, ``12.3 MB``; 1 kB is 1,000 bytes."""
    sign, number, unit = "-" if count < 0 else "", float(abs(count)), 0
    # 999.5 would be rounded to 1000 and get a fourth digit.
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    if unit == 0:
        return f"{sign}{number:.0f} B"
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{sign}{number:.{digits}f} {_UNITS[unit]}"


def ratio(value: float | None) -> str:
    """A factor: ``96.0x``, ``1,536x``; a dash where there is none."""
    if value is None:
        return "–"
    return f"{value:,.0f}x" if value >= 999.95 else f"{value:.1f}x" if value >= 9.995 else f"{value:.2f}x"


def share(value: float | None) -> str:
    """A part of one in percent: ``1.3 %``; a dash where there is none."""
    return "–" if value is None else f"{100 * value:.1f} %"
