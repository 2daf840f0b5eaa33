"""The array pool reuses the memory of summands and never overwrites a sum that is still in use."""

from __future__ import annotations

import numpy as np
import pytest

from farshore.engines.federated.array_pool import ArrayPool
from farshore.engines.federated.tree import NamedArrays, TreeSum


def _sum(size: int, pool: ArrayPool | None, round_index: int) -> tuple[NamedArrays | None, int]:
    """Sum ``size`` random summands; return the total and the number of distinct arrays used."""
    tree, addresses = TreeSum(size, 0, None if pool is None else pool.release_all), set()
    rng = np.random.default_rng(round_index)
    for position in range(size):
        values = rng.standard_normal(100).astype(np.float32)
        array = np.empty_like(values) if pool is None else pool.take(values.shape, values.dtype)
        array[:] = values
        addresses.add(array.__array_interface__["data"][0])
        tree.add(position, {"floats": array})
    return tree.total(), len(addresses)


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_pooled_sums_are_bit_identical_to_sums_in_new_memory(size: int) -> None:
    pool = ArrayPool()
    totals = [(_sum(size, pool, n)[0], _sum(size, None, n)[0]) for n in range(4)]
    for pooled, fresh in totals:  # compared after later rounds, which must not have overwritten them
        assert pooled is not None
        assert fresh is not None
        assert pooled["floats"].tobytes() == fresh["floats"].tobytes()


def test_a_sum_uses_at_most_one_array_per_tree_level() -> None:
    assert _sum(64, ArrayPool(), 0)[1] <= 8


def test_arrays_from_elsewhere_are_not_pooled() -> None:
    pool, foreign = ArrayPool(), np.zeros(8, np.float32)
    for array in (foreign, foreign[:4]):
        pool.release(array)
        assert pool.take(array.shape, array.dtype) is not array


def test_an_array_released_twice_is_handed_out_once() -> None:
    pool = ArrayPool()
    array = pool.copy(np.arange(8.0))
    pool.release(array)
    pool.release(array)
    assert [pool.take((8,), np.dtype(float)) is array for _ in range(2)] == [True, False]


def test_a_preferred_array_is_used_once_and_never_pooled() -> None:
    pool, preferred = ArrayPool(), np.zeros(8)
    pool.prefer({"floats": preferred})
    assert pool.take_named("other", (8,), preferred.dtype) is not preferred
    assert pool.take_named("floats", (8,), preferred.dtype) is preferred
    pool.release(preferred)
    assert pool.take_named("floats", (8,), preferred.dtype) is not preferred


def test_a_preferred_array_of_another_shape_or_dtype_is_not_used() -> None:
    pool = ArrayPool()
    for shape, kind in (((7,), np.float64), ((8,), np.float32)):
        pool.prefer({"floats": np.zeros(8)})
        taken = pool.take_named("floats", shape, np.dtype(kind))
        assert (taken.shape, taken.dtype) == (shape, np.dtype(kind))


def test_parts_and_arrays_of_another_pool_are_not_pooled() -> None:
    pool, other = ArrayPool(), ArrayPool()
    array, foreign = pool.take((8,), np.dtype(float)), other.take((8,), np.dtype(float))
    pool.release(array[:4])
    pool.release(foreign)
    assert pool.take((4,), np.dtype(float)).base is not array.base
    assert pool.take((8,), np.dtype(float)) is not foreign
    other.release(foreign)
    assert other.take((8,), np.dtype(float)) is foreign
