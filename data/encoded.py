"""Tokenized sentences in one flat token array with offsets."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..core.errors import ConfigError, DataError
from ..core.seeds import Seed

Ints = NDArray[np.int32] | NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EncodedSet:
    """Sentences or sentence pairs as token ids, without padding.

    Attributes
    ----------
    tokens : int32 array, shape [M]
        Token ids of all sentences, concatenated.
    offsets : int64 array, shape [n + 1]
        Sentence ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``.
    labels : int64 array, shape [n]
        Class of each sentence.
    ids : int64 array, shape [n]
        Index of each sentence in the set it was encoded from; :meth:`take` preserves it, so it identifies a sentence
        in subsets, shards and batches.
    pad_id : int
        Token id for padding.
    pair_starts : int32 array, shape [n], optional
        Token index at which the second sentence of each pair starts, for models with ``token_type_ids``; else None.
    """

    tokens: NDArray[np.int32]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]
    ids: NDArray[np.int64]
    pad_id: int = 0
    pair_starts: NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """Tokens per sentence, shape [n]."""
        return np.diff(self.offsets).astype(np.int32)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the content, 32 hexadecimal digits, independent of the machine."""
        digest = hashlib.blake2b(digest_size=16)
        arrays: list[Ints] = [self.tokens, self.offsets, self.labels, self.ids]
        if self.pair_starts is not None:
            arrays.append(self.pair_starts)
        for array in arrays:
            little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
            digest.update(len(little).to_bytes(8, "little"))
            digest.update(little.view(np.uint8).data)
        digest.update(self.pad_id.to_bytes(8, "little", signed=True))
        return digest.hexdigest()

    def gather(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        """Token ids of the sentences at ``rows``, concatenated, shape [sum of their lengths]."""
        lengths = self.lengths[rows].astype(np.int64)
        ends = np.cumsum(lengths)
        shift = np.repeat(self.offsets[rows] - (ends - lengths), lengths)
        gathered: NDArray[np.int32] = self.tokens[np.arange(len(shift), dtype=np.int64) + shift]
        return gathered

    def take(self, rows: NDArray[np.int64]) -> EncodedSet:
        """A new set of the sentences at ``rows``, in that order; ids are preserved."""
        offsets = np.concatenate([[0], np.cumsum(self.lengths[rows], dtype=np.int64)])
        pairs = None if self.pair_starts is None else self.pair_starts[rows]
        return EncodedSet(self.gather(rows), offsets, self.labels[rows], self.ids[rows], self.pad_id, pairs)

    def shard(self, index: int, count: int) -> EncodedSet:
        """Shard ``index`` of ``count``: every ``count``-th sentence, so that sizes differ by at most one.

        Raises
        ------
        ConfigError
            Not 0 ≤ ``index`` < ``count``.
        DataError
            There are fewer sentences than shards.
        """
        if count < 1 or not 0 <= index < count:
            raise ConfigError(
                f"there is no shard {index} of {count}",
                hint="shards count from 0: use 0/2 and 1/2 for two nodes",
            )
        if len(self) < count:
            raise DataError(
                f"{len(self)} sentences cannot be divided into {count} shards",
                hint="use fewer nodes or more data",
            )
        return self.take(np.arange(index, len(self), count, dtype=np.int64))

    def split(self, size: int, seed: Seed) -> tuple[EncodedSet, EncodedSet]:
        """A random subset of ``size`` sentences and its complement, both in the original order.

        Raises
        ------
        DataError
            The set has fewer than ``size`` sentences.
        """
        if not 0 <= size <= len(self):
            raise DataError(
                f"cannot take {size} sentences from a set of {len(self)}",
                hint=f"use at most {len(self)}",
            )
        order = seed.numpy().permutation(len(self)).astype(np.int64)
        return self.take(np.sort(order[:size])), self.take(np.sort(order[size:]))

    def subset(self, size: int, seed: Seed) -> EncodedSet:
        """The first part of :meth:`split`; same errors."""
        return self.split(size, seed)[0]
