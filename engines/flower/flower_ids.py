"""Derives Flower's integer ids of runs and nodes from their names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ...core.errors import ConfigError


def flower_id(name: str) -> int:
    """A deterministic id of a name, 2 to 2^63 - 1; Flower reserves 1 for the server."""
    value = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
    return max(2, value)


def names_by_id(names: Iterable[str]) -> dict[int, str]:
    """Names by id, in ascending order of ids.

    Raises
    ------
    ConfigError
        Two names have the same id.
    """
    found: dict[int, str] = {}
    for name in names:
        if found.setdefault(flower_id(name), name) != name:
            raise ConfigError(
                f"nodes '{name}' and '{found[flower_id(name)]}' have the same Flower id", hint="rename one of them"
            )
    return dict(sorted(found.items()))
