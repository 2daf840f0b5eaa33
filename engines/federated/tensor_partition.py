"""Partitions a flat vector into the tensors that are sent: whole, or by layer if an encoding needs shapes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ...core.message import Array, Encoding
from ...models.flat_params import FlatLayout, View
from ...wire.encodings import Chain, Int4, Int8, LowRank, SizedEncoding, TopK, parse
from .config import FRACTION, RANK, Uplink


@dataclass(frozen=True, slots=True)
class TensorSlice:
    """Spans of a flat vector that are sent as one tensor.

    Attributes
    ----------
    name : str
        Name in the message's tensor table.
    spans : tuple of (start, stop)
        Index ranges of the vector, in order; empty = an array of any shape, unchanged.
    shape : tuple of int
        Shape of the tensor that is sent.
    encoding : Encoding or None
        None = raw.
    channels_last : bool
        Whether the span's first axis, a layer's outputs, is moved last.
    """

    name: str
    spans: tuple[tuple[int, int], ...]
    shape: tuple[int, ...]
    encoding: Encoding | None = None
    channels_last: bool = False

    def take(self, vector: Array) -> Array:
        """Return the tensor, as a view of the vector if possible."""
        if not self.spans:
            return vector
        parts = [vector[start:stop] for start, stop in self.spans]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if self.channels_last:
            return np.ascontiguousarray(whole.reshape(self.shape[::-1]).T)
        return whole.reshape(self.shape)

    def put(self, vector: Array, tensor: Array) -> None:
        """Write a received tensor into its spans of the vector."""
        if not self.spans:
            vector[...] = tensor
            return
        flat = (tensor.T if self.channels_last else tensor).reshape(-1)
        offset = 0
        for start, stop in self.spans:
            vector[start:stop] = flat[offset : offset + stop - start]
            offset += stop - start


#: ``(name, length, layout)`` of a vector -> its slices.
Cut = Callable[[str, int, FlatLayout], tuple[TensorSlice, ...]]


def cut_for(settings: Uplink) -> Cut | None:
    """Return the partition for an encoding; None = vectors are sent raw and whole."""
    kind = settings.encoding
    if kind == "raw":
        return None
    if kind in ("fp16", "bf16"):
        return _whole(parse(kind))
    if kind in ("int8", "int4"):
        return _by_channel(Int8() if kind == "int8" else Int4())
    first = TopK(settings.fraction or FRACTION) if kind == "topk" else LowRank(settings.rank or RANK)
    encoding: SizedEncoding = first if settings.values == "raw" else Chain(first, parse(settings.values))
    return _largest(encoding) if kind == "topk" else _by_matrix(first, encoding)


def _whole(encoding: Encoding) -> Cut:
    return lambda name, length, layout: (TensorSlice(name, ((0, length),), (length,), encoding),)


def _largest(encoding: Encoding) -> Cut:
    """Top-k over all trained parameters; the few statistics, which have other scales, are sent raw."""

    def cut(name: str, length: int, layout: FlatLayout) -> tuple[TensorSlice, ...]:
        trained = TensorSlice(name, ((0, layout.trainable),), (layout.trainable,), encoding)
        rest = length - layout.trainable
        return (trained, TensorSlice(f"{name}/rest", ((layout.trainable, length),), (rest,))) if rest else (trained,)

    return cut


def _by_channel(encoding: Encoding) -> Cut:
    """One tensor per parameter, with a scale per output of a layer; one-dimensional parameters have one scale."""

    def slice_of(name: str, view: View) -> TensorSlice:
        span = ((view.start, view.start + view.count),)
        if len(view.shape) < 2 or not view.count:
            return TensorSlice(f"{name}/{view.name}", span, (view.count,), encoding)
        outputs = view.shape[0]
        return TensorSlice(f"{name}/{view.name}", span, (view.count // outputs, outputs), encoding, channels_last=True)

    return lambda name, length, layout: tuple(slice_of(name, view) for view in _views(layout, length))


def _by_matrix(factors: LowRank | TopK, encoding: Encoding) -> Cut:
    """One tensor per weight matrix that factors make smaller; the rest raw in one tensor (Vogels 2019, section 3)."""

    def cut(name: str, length: int, layout: FlatLayout) -> tuple[TensorSlice, ...]:
        slices, rest = [], []
        for view in _views(layout, length):
            matrix = (view.shape[0], math.prod(view.shape[1:])) if len(view.shape) > 1 else (view.count,)
            span = (view.start, view.start + view.count)
            if isinstance(factors, LowRank) and factors.shrinks(matrix):
                slices.append(TensorSlice(f"{name}/{view.name}", (span,), matrix, encoding))
            else:
                rest.append(span)
        count = sum(stop - start for start, stop in rest)
        return (*slices, TensorSlice(f"{name}/rest", tuple(rest), (count,))) if rest else tuple(slices)

    return cut


def _views(layout: FlatLayout, length: int) -> list[View]:
    return [view for view in layout.floats if view.start + view.count <= length]
