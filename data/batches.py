"""Batches: which sentences make up each step, and how a batch is padded and divided.

The plan is a pure function of (seed, epoch): a program that restarts at step ``s`` rebuilds exactly the batch
of step ``s`` without going through the steps before it.
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
    """Sentences of one step, padded to the longest of them.

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
        1 in the second sentence of a pair; None for single sentences and for models that know no types.
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
        """The given rows, padded only to the longest of them."""
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
    """Pad the sentences at ``rows`` to the longest of them."""
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
    """Steps that one epoch over ``size`` sentences takes; at least one."""
    return max(1, size // batch_size if drop_last else -(-size // batch_size))


class BatchPlan:
    """Which sentences make up each step of each epoch.

    An epoch is a random order, sorted by length inside windows of ``window`` batches, cut into batches whose
    order is then shuffled: similar lengths meet (little padding) without the same sentences meeting in each
    epoch. Batch sizes differ by at most one and never exceed ``batch_size``, so there is no small last batch
    that weighs more than others.

    Parameters
    ----------
    lengths : array, shape [n]
        Tokens per sentence.
    batch_size : int
        Largest batch.
    seed : Seed
        Epoch ``e`` draws from ``seed.child("batches", e)``.
    steps : int, optional
        Steps per epoch; the default is what ``batch_size`` needs. Fewer trims a random rest, more makes
        batches smaller.
    drop_last : bool
        Make every batch exactly ``batch_size`` and leave a random rest out of each epoch.
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
            raise ConfigError(f"batches of {batch_size} in windows of {window} are not possible", hint="use at least 1")
        if not len(lengths):
            raise DataError("there are no sentences to make batches of", hint="check the data set and its shard")
        self._lengths, self._seed, self._window = lengths, seed, window
        self._steps = steps or natural_steps(len(lengths), batch_size, drop_last=drop_last)
        used = min(max(len(lengths), self._steps), self._steps * batch_size)
        # bounds[i]:bounds[i + 1] are the places of batch i before shuffling; sizes differ by at most one.
        self._bounds = np.arange(self._steps + 1, dtype=np.int64) * used // self._steps
        self._cached: tuple[int, list[Rows]] = (-1, [])

    @property
    def steps_per_epoch(self) -> int:
        """Number of steps in every epoch."""
        return self._steps

    @property
    def sentences_per_epoch(self) -> int:
        """Sentences that an epoch goes through, repeated ones included."""
        return int(self._bounds[-1])

    def epoch(self, epoch: int) -> list[Rows]:
        """Rows of each step of ``epoch``, shortest sentence first within a batch."""
        if self._cached[0] != epoch:
            self._cached = (epoch, self._draw(epoch))
        return list(self._cached[1])

    def at(self, step: int) -> Rows:
        """Rows of ``step``, counted from 0 through all epochs, whatever was asked for before."""
        epoch, place = divmod(step, self._steps)
        return self.epoch(epoch)[place]

    def _draw(self, epoch: int) -> list[Rows]:
        rng = self._seed.child("batches", epoch).numpy()
        # More steps than sentences: np.resize repeats the epoch's order from its start.
        order = np.resize(rng.permutation(len(self._lengths)), self.sentences_per_epoch).astype(np.int64)
        for first in range(0, self._steps, self._window):
            last = min(first + self._window, self._steps)
            here = slice(self._bounds[first], self._bounds[last])
            order[here] = order[here][np.argsort(self._lengths[order[here]], kind="stable")]
        batches = np.split(order, self._bounds[1:-1])
        return [batches[i] for i in rng.permutation(self._steps)]


def evaluation_batches(data: EncodedSet, batch_size: int) -> Iterator[Batch]:
    """Every sentence once, shortest first; :attr:`Batch.ids` tells which is which."""
    order = np.argsort(data.lengths, kind="stable").astype(np.int64)
    for at in range(0, len(order), batch_size):
        yield make_batch(data, order[at : at + batch_size])


def split_micro(batch: Batch, count: int) -> list[Batch]:
    """Divide a batch into ``count`` micro-batches of nearly equal token counts, each padded for itself.

    Rows keep their order, so a batch sorted by length makes micro-batches of similar lengths. A token count
    is off the mean by at most one sentence as long as no micro-batch would be empty. A batch of fewer than
    ``count`` rows gives one micro-batch per row.
    """
    count = min(count, len(batch))
    if count < 1:
        raise ConfigError("a batch cannot be divided into no micro-batches", hint="use at least 1")
    ends = np.cumsum(batch.lengths, dtype=np.int64)
    bounds = [0]
    for part in range(1, count):
        # The row boundary nearest to part/count of all tokens, leaving at least one row for every part.
        target = ends[-1] * part / count
        nearest = int(np.argmin(np.abs(ends - target))) + 1
        bounds.append(min(max(nearest, bounds[-1] + 1), len(batch) - (count - part)))
    bounds.append(len(batch))
    return [batch.take(np.arange(a, b)) for a, b in pairwise(bounds)]
