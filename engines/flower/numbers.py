"""Flower knows runs and nodes by numbers; ours have names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ...core.errors import ConfigError


def number_of(name: str) -> int:
    """A number from 2 to 2^63 - 1 that a name always has; 1 is the server's."""
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
    return max(2, value)


def numbered(names: Iterable[str]) -> dict[int, str]:
    """Names by their numbers, ascending.

    Raises
    ------
    ConfigError
        Two names have one number.
    """
    found: dict[int, str] = {}
    for name in names:
        if found.setdefault(number_of(name), name) != name:
            raise ConfigError(f"nodes '{name}' and '{found[number_of(name)]}' have the same number for Flower apps")
    return dict(sorted(found.items()))
