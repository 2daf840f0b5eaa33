"""Sums of blocks stay in shared memory, and take no more of it than the tree has levels."""

from __future__ import annotations

import numpy as np

from farshore.engines.federated.tree import TreeSum
from farshore.simulations.federated.shared_sums import SharedSums


def test_sums_in_shared_memory_have_the_same_bits_and_take_turns_in_few_places() -> None:
    totals = SharedSums({"floats": np.zeros(100, np.float32), "weight": np.zeros(1)})
    places: set[str] = set()
    try:
        for round_ in range(3):
            values = np.random.default_rng(round_).standard_normal((64, 100)).astype(np.float32)
            shared, own = TreeSum(64, release=totals.give), TreeSum(64)
            for position, row in enumerate(values):
                place = totals.take()
                places.add(place.description()["memory"])
                place.fill({"floats": row, "weight": np.ones(1)})
                shared.add(position, place.arrays)
                own.add(position, {"floats": row.copy(), "weight": np.ones(1)})
            root, expected = shared.total(), own.total()
            assert root is not None
            assert expected is not None
            assert {n: a.tobytes() for n, a in root.items()} == {n: a.tobytes() for n, a in expected.items()}
            totals.give(root)
        assert len(places) <= 8
    finally:
        totals.close()
