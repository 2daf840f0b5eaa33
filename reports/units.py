"""Formatting of bytes, ratios, shares, durations and energies with units."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")

#: Labels of the directions: node to server, server to node, node to node.
ARROWS = {"up": "↑ up", "down": "↓ down", "peer": "↔ peers"}


def size(count: int | float) -> str:
    """Format bytes with three significant digits: ``999 B``, ``1.00 kB``, ``12.3 MB``; 1 kB is 1,000 bytes."""
    sign, number, unit = "-" if count < 0 else "", float(abs(count)), 0
    # 999.5 would be rounded to 1000, which has a fourth digit.
    while number >= 999.5 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    if unit == 0:
        return f"{sign}{number:.0f} B"
    digits = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{sign}{number:.{digits}f} {_UNITS[unit]}"


def ratio(value: float | None) -> str:
    """Format a factor: ``96.0x``, ``1,536x``; a dash for None."""
    if value is None:
        return "–"
    return f"{value:,.0f}x" if value >= 999.95 else f"{value:.1f}x" if value >= 9.995 else f"{value:.2f}x"


def share(value: float | None) -> str:
    """Format a fraction in percent: ``1.3 %``; a dash for None."""
    return "–" if value is None else f"{100 * value:.1f} %"


def span(seconds: float) -> str:
    """Format a duration with two significant digits: ``0.42 s``, ``12 s``, ``3.5 min``, ``2.1 h``, ``4.0 days``."""
    value, unit = seconds, "s"
    for limit, factor, larger in ((90, 60, "min"), (90, 60, "h"), (48, 24, "days")):
        if value < limit:
            break
        value, unit = value / factor, larger
    digits = f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" if value >= 0.95 else f"{value:.2g}"
    return f"{digits} {unit}"


def energy(joule: float) -> str:
    """Format an energy: ``0.52 J``, ``1.2 kJ``, ``3.4 Wh``."""
    if joule < 1000:
        return f"{joule:.3g} J"
    return f"{joule / 1000:.1f} kJ" if joule < 3600 else f"{joule / 3600:,.1f} Wh"
