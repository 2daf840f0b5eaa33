"""Memory of summands is used again, and no sum that somebody holds is ever overwritten."""

from __future__ import annotations

import numpy as np
import pytest

from farshore.engines.federated.array_pool import ArrayPool
from farshore.engines.federated.tree import Part, TreeSum


def _summed(size: int, spare: ArrayPool | None, round_: int) -> tuple[Part | None, int]:
    tree, seen = TreeSum(size, 0, None if spare is None else spare.give_all), set()
    rng = np.random.default_rng(round_)
    for position in range(size):
        values = rng.standard_normal(100).astype(np.float32)
        array = np.empty_like(values) if spare is None else spare.take(values.shape, values.dtype)
        array[:] = values
        seen.add(array.__array_interface__["data"][0])
        tree.add(position, {"floats": array})
    return tree.total(), len(seen)


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_sums_have_the_same_bits_as_with_new_memory(size: int) -> None:
    spare = ArrayPool()
    totals = [(_summed(size, spare, n)[0], _summed(size, None, n)[0]) for n in range(4)]
    for again, fresh in totals:  # looked at after later rounds, which must not have touched them
        assert again is not None
        assert fresh is not None
        assert again["floats"].tobytes() == fresh["floats"].tobytes()


def test_a_sum_of_many_takes_no_more_arrays_than_the_tree_has_levels() -> None:
    assert _summed(64, ArrayPool(), 0)[1] <= 8


def test_memory_of_somebody_else_is_not_taken_over() -> None:
    spare, whole = ArrayPool(), np.zeros(8, np.float32)
    for array in (whole, whole[:4]):
        spare.give(array)
        assert spare.take(array.shape, array.dtype) is not array


def test_an_array_is_lent_to_one_at_a_time() -> None:
    spare = ArrayPool()
    array = spare.copied(np.arange(8.0))
    spare.give(array)
    spare.give(array)
    assert [spare.take((8,), np.dtype(float)) is array for _ in range(2)] == [True, False]


def test_a_preferred_array_is_written_to_once_and_stays_the_callers() -> None:
    spare, mine = ArrayPool(), np.zeros(8)
    spare.prefer({"floats": mine})
    assert spare.summand("other", (8,), mine.dtype) is not mine
    assert spare.summand("floats", (8,), mine.dtype) is mine
    spare.give(mine)
    assert spare.summand("floats", (8,), mine.dtype) is not mine


def test_a_preferred_array_of_another_shape_or_type_is_left_alone() -> None:
    spare = ArrayPool()
    for shape, kind in (((7,), np.float64), ((8,), np.float32)):
        spare.prefer({"floats": np.zeros(8)})
        taken = spare.summand("floats", shape, np.dtype(kind))
        assert (taken.shape, taken.dtype) == (shape, np.dtype(kind))
