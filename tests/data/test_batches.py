"""Batch plans, padding, micro-batches and evaluation batches."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from farshore.core.errors import ConfigError, DataError
from farshore.core.seeds import Seed
from farshore.data.batches import Batch, BatchPlan, evaluation_batches, make_batch, natural_steps, split_micro
from farshore.data.encoded import EncodedSet
from farshore.data.glue import load_glue
from farshore.data.text import encode

SEED = Seed(3)


def skewed_lengths(count: int, seed: int = 0) -> np.ndarray:
    """Sentence lengths distributed as in SST-2: many short ones and a long tail."""
    drawn = np.random.default_rng(seed).gamma(2.0, 6.0, count)
    return np.clip(drawn, 3, 66).astype(np.int32)


def make_set(lengths: np.ndarray, *, pairs: bool = False) -> EncodedSet:
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    ids = np.arange(len(lengths))
    starts = (lengths // 2).astype(np.int32) if pairs else None
    return EncodedSet(np.arange(1, offsets[-1] + 1, dtype=np.int32), offsets, ids % 3, ids, 0, starts)


def test_any_step_can_be_rebuilt_without_earlier_steps() -> None:
    lengths = skewed_lengths(1000)
    plan = BatchPlan(lengths, 32, SEED)
    order = [plan.at(step) for step in range(3 * plan.steps_per_epoch)]
    for step in (0, 31, 32, 70, 95):
        assert np.array_equal(BatchPlan(lengths, 32, SEED).at(step), order[step])


def test_other_epochs_and_seeds_give_other_batches() -> None:
    plan = BatchPlan(skewed_lengths(1000), 32, SEED)
    other = BatchPlan(skewed_lengths(1000), 32, Seed(4))
    first = {frozenset(map(int, rows)) for rows in plan.epoch(0)}
    assert not first & {frozenset(map(int, rows)) for rows in plan.epoch(1)}
    assert not first & {frozenset(map(int, rows)) for rows in other.epoch(0)}


@pytest.mark.parametrize("count", [1, 31, 32, 33, 1000, 3301])
def test_an_epoch_has_every_sentence_once_in_batches_of_equal_size(count: int) -> None:
    plan = BatchPlan(skewed_lengths(count), 32, SEED)
    batches = plan.epoch(2)
    assert len(batches) == plan.steps_per_epoch == -(-count // 32)
    assert sorted(np.concatenate(batches)) == list(range(count))
    sizes = [len(b) for b in batches]
    assert max(sizes) <= 32
    assert max(sizes) - min(sizes) <= 1


def test_drop_last_makes_full_batches_and_drops_other_sentences_in_each_epoch() -> None:
    plan = BatchPlan(skewed_lengths(100), 32, SEED, drop_last=True)
    assert plan.steps_per_epoch == 3
    used = []
    for epoch in range(2):
        assert [len(b) for b in plan.epoch(epoch)] == [32] * 3
        rows = np.concatenate(plan.epoch(epoch))
        assert len(set(rows)) == 96
        used.append(set(map(int, rows)))
    assert used[0] != used[1]


def test_sorting_in_windows_reduces_padding() -> None:
    data = make_set(skewed_lengths(8000))
    shares = {}
    for window in (1, 50):
        batches = [make_batch(data, rows) for rows in BatchPlan(data.lengths, 32, SEED, window=window).epoch(0)]
        shares[window] = 1 - sum(b.tokens for b in batches) / sum(b.input_ids.size for b in batches)
    assert shares[50] < 0.06
    assert shares[1] > 0.4  # without windows


def test_batch_lengths_are_not_sorted_over_an_epoch() -> None:
    lengths = skewed_lengths(8000)
    means = np.array([lengths[rows].mean() for rows in BatchPlan(lengths, 32, SEED).epoch(0)])
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.2


@pytest.mark.parametrize("sizes", [(500, 501), (65, 64), (1000, 10), (3, 200)])
def test_nodes_with_different_sizes_can_take_the_same_number_of_steps(sizes: tuple[int, int]) -> None:
    for even in ("pad", "trim"):  # as many as the largest set needs, or the smallest
        steps = natural_steps((max if even == "pad" else min)(sizes), 32)
        plans = [BatchPlan(skewed_lengths(n), 32, SEED.child(i), steps=steps) for i, n in enumerate(sizes)]
        for size, plan in zip(sizes, plans, strict=True):
            batches = plan.epoch(0)
            assert len(batches) == steps
            assert all(1 <= len(b) <= 32 for b in batches)
            rows = np.concatenate(batches)
            # Sentences are repeated only if there are more steps than sentences.
            assert len(rows) == min(max(size, steps), 32 * steps)
            assert len(set(rows)) == min(len(rows), size)


def test_invalid_plans_are_refused() -> None:
    with pytest.raises(ConfigError):
        BatchPlan(skewed_lengths(10), 0, SEED)
    with pytest.raises(ConfigError):
        BatchPlan(skewed_lengths(10), 4, SEED, steps=0)
    with pytest.raises(DataError):
        BatchPlan(skewed_lengths(0), 4, SEED)


def test_a_batch_is_padded_to_its_longest_sentence_only() -> None:
    data = make_set(np.array([3, 9, 5], np.int32), pairs=True)
    batch = make_batch(data, np.array([2, 0]))
    assert batch.input_ids.tolist() == [[13, 14, 15, 16, 17], [1, 2, 3, 0, 0]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    assert batch.token_type_ids is not None
    assert batch.token_type_ids.tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]
    assert (batch.lengths.tolist(), batch.labels.tolist(), batch.ids.tolist()) == ([5, 3], [2, 0], [2, 0])
    assert batch.input_ids.dtype == batch.attention_mask.dtype == batch.labels.dtype == np.int64


def test_shards_and_subsets_preserve_ids() -> None:
    data = make_set(skewed_lengths(100))
    batch = make_batch(data.subset(40, SEED).shard(1, 3), np.arange(5))
    whole = make_batch(data, batch.ids)
    assert np.array_equal(batch.input_ids, whole.input_ids)
    assert np.array_equal(batch.labels, whole.labels)


def assert_same(left: Batch, right: Batch) -> None:
    for name in ("input_ids", "attention_mask", "lengths", "labels", "ids", "token_type_ids"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 12))
def test_micro_batches_partition_a_batch_into_nearly_equal_token_counts(lengths: list[int], count: int) -> None:
    data = make_set(np.array(sorted(lengths), np.int32), pairs=True)
    batch = make_batch(data, np.arange(len(lengths)))
    parts = split_micro(batch, count)
    assert len(parts) == min(count, len(lengths))
    starts = np.cumsum([0, *map(len, parts)])
    for start, part in zip(starts, parts, strict=False):
        rows = np.arange(start, start + len(part))
        assert_same(part, make_batch(data, rows))
    assert starts[-1] == len(batch)
    assert all(p.input_ids.shape[1] == p.lengths.max() for p in parts)
    # Boundaries differ from the nearest ones only to keep parts from being empty.
    if all(len(p) > 1 for p in parts):
        assert all(abs(p.tokens - batch.tokens / len(parts)) <= max(lengths) for p in parts)


def test_evaluation_batches_have_every_sentence_once_shortest_first() -> None:
    data = make_set(skewed_lengths(101))
    batches = list(evaluation_batches(data, 16))
    assert sorted(i for b in batches for i in b.ids) == list(range(101))
    longest = [int(b.lengths.max()) for b in batches]
    assert all(a <= b for a, b in pairwise(longest))


@pytest.mark.realdata
def test_real_sentences_are_batched_with_little_padding(glue_folder: Path, word_tokenizer: Any) -> None:
    data = encode(load_glue("sst2", glue_folder).train, word_tokenizer, max_length=66)
    batches = [make_batch(data, rows) for rows in BatchPlan(data.lengths, 32, SEED).epoch(0)]
    assert len(batches) == 2105
    assert 1 - sum(b.tokens for b in batches) / sum(b.input_ids.size for b in batches) < 0.06
