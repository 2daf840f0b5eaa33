"""Batches of tokenized sentences: seeded batch plans, padding and micro-batches.

A plan is a pure function of (seed, epoch): a program restarted at step ``s`` rebuilds the batch of step ``s`` without
replaying the steps before it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from ..core.seeds import Seed
from .encoded import EncodedSet

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """The sentences of one step, padded to the longest.

    Attributes
    ----------
    input_ids : int64 array, shape [B, T]
        Token ids, padded on the right.
    attention_mask : int64 array, shape [B, T]
        1 for tokens, 0 for padding.
    lengths : int32 array, shape [B]
        Tokens per row.
    labels : int64 array, shape [B]
        Classes.
    ids : int64 array, shape [B]
        :attr:`EncodedSet.ids` of the rows.
    token_type_ids : int64 array, shape [B, T], optional
        1 in the second sentence of a pair; None for single sentences and for models without token types.
    """

    input_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    lengths: NDArray[np.int32]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    token_type_ids: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def tokens(self) -> int:
        """Number of tokens without padding."""
        return int(self.lengths.sum())

    def take(self, rows: Rows) -> Batch:
        """Select rows and trim the padding to the longest of them."""
        longest = int(self.lengths[rows].max())
        types = None if self.token_type_ids is None else self.token_type_ids[rows, :longest]
        return Batch(
            self.input_ids[rows, :longest],
            self.attention_mask[rows, :longest],
            self.lengths[rows],
            self.labels[rows],
            self.ids[rows],
            types,
        )


def make_batch(data: EncodedSet, rows: Rows) -> Batch:
    """Make a batch of the sentences at ``rows``, padded to the longest."""
    lengths = data.lengths[rows]
    column = np.arange(int(lengths.max()))
    mask = column < lengths[:, None]  # [B, T]
    input_ids = np.full(mask.shape, data.pad_id, np.int64)
    input_ids[mask] = data.gather(rows)
    types = None
    if data.pair_starts is not None:
        types = (mask & (column >= data.pair_starts[rows][:, None])).astype(np.int64)
    return Batch(input_ids, mask.astype(np.int64), lengths, data.labels[rows], data.ids[rows], types)


def natural_steps(size: int, batch_size: int, *, drop_last: bool = False) -> int:
    """Steps in one epoch over ``size`` sentences; at least one."""
    return max(1, size // batch_size if drop_last else -(-size // batch_size))


class BatchPlan:
    """Assigns sentences to the steps of each epoch.

    An epoch is a random order, sorted by length within windows of ``window`` batches, and split into batches whose
    order is then shuffled. Batches thus contain similar lengths (little padding) but different sentences in each epoch.
    Batch sizes differ by at most one and never exceed ``batch_size``, so there is no small last batch whose sentences
    weigh more than others.

    Parameters
    ----------
    lengths : array, shape [n]
        Tokens per sentence.
    batch_size : int
        Size of the largest batch.
    seed : Seed
        Epoch ``e`` draws from ``seed.child("batches", e)``.
    steps : int, optional
        Steps per epoch; by default as many as ``batch_size`` requires. With fewer steps, a random remainder is left out
        of each epoch; with more, batches are smaller.
    drop_last : bool
        Make every batch exactly ``batch_size`` and leave a random remainder out of each epoch.
    window : int
        Batches per sorting window.

    Raises
    ------
    ConfigError
        A size is below one.
    DataError
        There are no sentences.
    """

    def __init__(
        self,
        lengths: NDArray[np.int32],
        batch_size: int,
        seed: Seed,
        *,
        steps: int | None = None,
        drop_last: bool = False,
        window: int = 50,
    ) -> None:
        if batch_size < 1 or window < 1 or (steps is not None and steps < 1):
            raise ConfigError(
                f"batch size {batch_size}, window {window} and steps {steps} must be positive", hint="use at least 1"
            )
        if not len(lengths):
            raise DataError("cannot make batches: the data set has no sentences", hint="check the data set and shard")
        self._lengths, self._seed, self._window = lengths, seed, window
        self._steps = steps or natural_steps(len(lengths), batch_size, drop_last=drop_last)
        used = min(max(len(lengths), self._steps), self._steps * batch_size)
        # Before shuffling, batch i is bounds[i]:bounds[i + 1] of the order; sizes differ by at most one.
        self._bounds = np.arange(self._steps + 1, dtype=np.int64) * used // self._steps
        self._cached: tuple[int, list[Rows]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in every epoch."""
        return self._steps

    @property
    def sentences_per_epoch(self) -> int:
        """Sentences in an epoch, counting repetitions."""
        return int(self._bounds[-1])

    def epoch(self, epoch: int) -> list[Rows]:
        """Rows of each step of ``epoch``, shortest sentence first within a batch."""
        if self._cached[0] != epoch:
            self._cached = (epoch, self._draw(epoch))
        return list(self._cached[1])

    def at(self, step: int) -> Rows:
        """Rows of ``step``, counted from 0 across epochs; steps can be requested in any order."""
        epoch, index = divmod(step, self._steps)
        return self.epoch(epoch)[index]

    def _draw(self, epoch: int) -> list[Rows]:
        rng = self._seed.child("batches", epoch).numpy()
        # With more steps than sentences, np.resize repeats the order from its start.
        order = np.resize(rng.permutation(len(self._lengths)), self.sentences_per_epoch).astype(np.int64)
        for first in range(0, self._steps, self._window):
            last = min(first + self._window, self._steps)
            window = slice(self._bounds[first], self._bounds[last])
            order[window] = order[window][np.argsort(self._lengths[order[window]], kind="stable")]
        batches = np.split(order, self._bounds[1:-1])
        return [batches[i] for i in rng.permutation(self._steps)]


def evaluation_batches(data: EncodedSet, batch_size: int) -> Iterator[Batch]:
    """Yield every sentence once, shortest first; :attr:`Batch.ids` identifies them."""
    order = np.argsort(data.lengths, kind="stable").astype(np.int64)
    for start in range(0, len(order), batch_size):
        yield make_batch(data, order[start : start + batch_size])


def split_micro(batch: Batch, count: int) -> list[Batch]:
    """Split a batch into ``count`` micro-batches of nearly equal token counts, each padded separately.

    Rows keep their order, so a batch sorted by length yields micro-batches of similar lengths. Token counts differ from
    the mean by at most one sentence, unless a micro-batch would be empty. A batch of fewer than ``count`` rows yields
    one micro-batch per row.

    Raises
    ------
    ConfigError
        ``count`` is below one.
    """
    count = min(count, len(batch))
    if count < 1:
        raise ConfigError("the number of micro-batches must be positive", hint="use at least 1")
    ends = np.cumsum(batch.lengths, dtype=np.int64)
    bounds = [0]
    for part in range(1, count):
        # The row boundary nearest to part/count of all tokens that leaves at least one row for every part.
        target = ends[-1] * part / count
        nearest = int(np.argmin(np.abs(ends - target))) + 1
        bounds.append(min(max(nearest, bounds[-1] + 1), len(batch) - (count - part)))
    bounds.append(len(batch))
    return [batch.take(np.arange(a, b)) for a, b in pairwise(bounds)]
