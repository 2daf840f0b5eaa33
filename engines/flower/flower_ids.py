"""Derives Flower's integer ids of runs and nodes from their names."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

_NAME_BITS = 43


def flower_id(name: str) -> int:
    """A deterministic id of a name, 2 to 2^63 - 1; Flower reserves 1 for the server."""
    return max(2, _hash(name) >> 1)


def node_id(name: str, index: int) -> int:
    """The id of the node at position ``index`` of a run's cohort: ascending with the position, whatever the names.

    Strategies sum in the order of ids, so a run has the same bits on simulated nodes and on real ones of other names.
    """
    return (index + 1) << _NAME_BITS | _hash(name) & ((1 << _NAME_BITS) - 1)


def names_by_id(names: Sequence[str]) -> dict[int, str]:
    """Names of a cohort by id, in its order."""
    return {node_id(name, index): name for index, name in enumerate(names)}


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
