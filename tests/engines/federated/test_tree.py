"""Tree sums are bit-identical for any order of arrival, division into blocks and set of missing positions."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farshore.engines.federated.tree import TreeSum, blocks


def leaf(position: int) -> dict[str, Any]:
    """Values of very different magnitudes, so that the order of additions affects the last bits."""
    rng = np.random.default_rng(position)
    return {"w": (rng.standard_normal(50) * 10.0 ** rng.integers(-3, 4, 50)).astype(np.float32)}


def reference(positions: list[int], size: int) -> Any:
    """The sum by its recursive definition."""

    def node(first: int, count: int) -> Any:
        if count == 1:
            return leaf(first)["w"] if first in positions else None
        left, right = node(first, count // 2), node(first + count // 2, count // 2)
        return right if left is None else left if right is None else left + right

    return node(0, 1 << max(0, (size - 1).bit_length()))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 33), st.data())
def test_any_order_and_any_missing_positions_give_the_defined_sum(size: int, data: st.DataObject) -> None:
    order = data.draw(st.permutations(range(size)))
    missing = data.draw(st.sets(st.integers(0, size - 1)))
    tree = TreeSum(size)
    for position in order:
        assert not tree.complete
        if position in missing:
            tree.skip(position)
        else:
            tree.add(position, leaf(position))
    expected = reference(sorted(set(range(size)) - missing), size)
    total = tree.total()
    assert (total is None) == (expected is None)
    if total is not None:
        assert np.array_equal(total["w"], expected)


@pytest.mark.parametrize(("size", "workers"), list(itertools.product([1, 2, 7, 10, 64, 100], [1, 2, 3, 16])))
def test_sums_of_blocks_are_bit_identical(size: int, workers: int) -> None:
    whole = TreeSum(size)
    for position in range(size):
        whole.add(position, leaf(position))
    combined = TreeSum(size)
    division = blocks(size, workers)
    assert [p for first, count in division for p in range(first, first + count)] == list(range(size))
    for first, count in reversed(division):
        part = TreeSum(count, first)
        for position in range(first, first + count):
            part.add(position, leaf(position))
        level = (division[0][1] - 1).bit_length()
        total = part.total()
        assert total is not None
        combined.add(first, total, level)
    one, many = whole.total(), combined.total()
    assert one is not None
    assert many is not None
    assert np.array_equal(one["w"], many["w"])


def test_positions_in_order_hold_at_most_one_array_per_level() -> None:
    tree = TreeSum(1000)
    most = 0
    for position in range(1000):
        tree.add(position, leaf(position))
        most = max(most, sum(part is not None for part in tree._waiting.values()))
    assert most <= 10
    assert tree.complete


def test_invalid_and_repeated_positions_are_refused() -> None:
    tree = TreeSum(6)
    with pytest.raises(ValueError, match="not a node"):
        tree.add(1, leaf(1), level=1)
    with pytest.raises(ValueError, match="not a node"):
        tree.add(6, leaf(6))
    tree.add(2, leaf(2))
    with pytest.raises(ValueError, match="before"):
        tree.add(2, leaf(2))
    with pytest.raises(ValueError, match="before"):
        tree.add(2, leaf(2), level=1)
    with pytest.raises(ValueError, match="neither added nor skipped"):
        tree.total()
    with pytest.raises(ValueError, match="cannot begin"):
        TreeSum(4, first=2)
    tree.add(3, leaf(3))
    with pytest.raises(ValueError, match="before"):  # also after it was added to its sibling
        tree.skip(2)
    with pytest.raises(ValueError, match="cannot add"):
        tree.add(0, {"w": np.zeros(50, np.float32)}) or tree.add(1, {"v": np.zeros(50, np.float32)})
