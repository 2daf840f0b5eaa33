"""Sums in shared memory have the same bits, and need one memory block per level of the reduction tree."""

from __future__ import annotations

import numpy as np

from farshore.engines.federated.tree import TreeSum
from farshore.simulations.federated.shared_sums import SharedSums


def test_sums_in_shared_memory_have_the_same_bits_and_reuse_few_blocks() -> None:
    sums = SharedSums({"floats": np.zeros(100, np.float32), "weight": np.zeros(1)})
    blocks: set[str] = set()
    try:
        for round_index in range(3):
            values = np.random.default_rng(round_index).standard_normal((64, 100)).astype(np.float32)
            shared, local = TreeSum(64, release=sums.release), TreeSum(64)
            for position, row in enumerate(values):
                block = sums.acquire()
                blocks.add(block.description()["memory"])
                block.fill({"floats": row, "weight": np.ones(1)})
                shared.add(position, block.arrays)
                local.add(position, {"floats": row.copy(), "weight": np.ones(1)})
            root, expected = shared.total(), local.total()
            assert root is not None
            assert expected is not None
            assert {n: a.tobytes() for n, a in root.items()} == {n: a.tobytes() for n, a in expected.items()}
            sums.release(root)
        assert len(blocks) <= 8
    finally:
        sums.close()
