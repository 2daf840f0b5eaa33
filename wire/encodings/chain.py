"""``a|b``: the output of one encoding, encoded by the next."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.errors import ConfigError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, Shape, Sized
from .lowrank import LowRank
from .quantize import Int2, Int4, Int8
from .ragged import Ragged
from .registry import decode
from .topk import TopK


class Chain:
    """One or more transforms, then a leaf: ``Chain(Ragged(lengths), Int4())`` is ``ragged|int4``.

    Side data of the stages stand one behind the other. A quantizer whose groups are the lengths of the
    ``Ragged`` before it does not send them again.

    Parameters
    ----------
    *stages : encodings
        All but the last are ``Ragged``, ``LowRank`` or ``TopK``.

    Raises
    ------
    ConfigError
        Fewer than two stages, more than four, or one that must be last is not.
    """

    def __init__(self, *stages: Sized) -> None:
        self.stages: tuple[Sized, ...] = tuple(t for s in stages for t in (s.stages if isinstance(s, Chain) else (s,)))
        if not 2 <= len(self.stages) <= 4:
            raise ConfigError(f"a chain has two to four encodings, not {len(self.stages)}")
        for stage in self.stages[:-1]:
            if not isinstance(stage, Ragged | LowRank | TopK):
                raise ConfigError(f"'{stage.name}' ends a chain", hint="put 'ragged', 'lowrank' and 'topk' before it")

    @property
    def name(self) -> str:
        return "|".join(s.name for s in self.stages)

    @property
    def lossy(self) -> bool:
        return any(s.lossy for s in self.stages)

    def encode(self, array: Array) -> Encoded:
        """Encode stage by stage; raises what the stages raise."""
        side, outer = b"", None
        for stage in self.stages[:-1]:
            encoded = stage.encode(array)
            side, array = side + encoded.side, encoded.body
            outer = stage.lengths if isinstance(stage, Ragged) else None
        last = self.stages[-1]
        encoded = last.encode_within(array, outer) if isinstance(last, Int8 | Int4 | Int2) else last.encode(array)
        return Encoded(side + encoded.side, encoded.body)

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """Side data of every stage and the body of the last, exactly."""
        total = 0
        outer: NDArray[np.int64] | None = None
        for stage in self.stages[:-1]:
            assert isinstance(stage, Ragged | LowRank | TopK)
            total += stage.side_size(shape)
            shape = stage.inner_shape(shape)
            outer = stage.lengths if isinstance(stage, Ragged) else None
        last = self.stages[-1]
        if isinstance(last, Int8 | Int4 | Int2):
            return total + last.size_within(shape, outer)
        return total + last.size(shape, dtype)

    def error_bound(self, array: Array) -> Bound:
        """``ragged``, ``topk``: the inner bound where something is sent; ``lowrank``: the error's measured norm."""
        first, rest = self.stages[0], self.stages[1:]
        inner = rest[0] if len(rest) == 1 else Chain(*rest)
        if isinstance(first, Ragged | TopK):
            return first.spread_bound(array, inner.error_bound(first.encode(array).body))
        encoded = self.encode(array)
        body = np.ascontiguousarray(encoded.body).reshape(-1).view(np.uint8).data
        again = decode(self.name, memoryview(encoded.side), body, ArrayLayout(array.dtype, array.shape))
        norm = np.linalg.norm((array.astype(np.float64) - again.astype(np.float64)).reshape(-1))
        return np.full((1,) * array.ndim, norm)
