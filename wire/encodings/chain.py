"""``a|b``: encodings in sequence, each of which encodes the output of the previous one."""

from __future__ import annotations

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ...core.errors import ConfigError
from ...core.message import Array, Encoded
from .base import ArrayLayout, Bound, Shape, SizedEncoding
from .lowrank import LowRank
from .quantize import Int2, Int4, Int8
from .ragged import Ragged
from .registry import decode
from .topk import TopK


class Chain:
    """One or more transforms and a leaf: ``Chain(Ragged(lengths), Int4())`` is ``ragged|int4``.

    The side data of the stages are concatenated. If the groups of a quantizer equal the lengths of the preceding
    ``Ragged``, they are not sent again.

    Parameters
    ----------
    *stages : encodings
        All except the last must be ``Ragged``, ``LowRank`` or ``TopK``.

    Raises
    ------
    ConfigError
        There are fewer than two or more than four stages, or a leaf is not the last stage.
    """

    def __init__(self, *stages: SizedEncoding) -> None:
        self.stages: tuple[SizedEncoding, ...] = tuple(
            t for s in stages for t in (s.stages if isinstance(s, Chain) else (s,))
        )
        if not 2 <= len(self.stages) <= 4:
            raise ConfigError(f"a chain must have two to four encodings, not {len(self.stages)}")
        for stage in self.stages[:-1]:
            if not isinstance(stage, Ragged | LowRank | TopK):
                raise ConfigError(
                    f"'{stage.name}' must be last in a chain",
                    hint="put 'ragged', 'lowrank' and 'topk' before it",
                )

    @property
    def name(self) -> str:
        return "|".join(s.name for s in self.stages)

    @property
    def lossy(self) -> bool:
        return any(s.lossy for s in self.stages)

    def encode(self, array: Array) -> Encoded:
        """Apply the stages in order; raises the errors of the stages."""
        side, outer = b"", None
        for stage in self.stages[:-1]:
            encoded = stage.encode(array)
            side, array = side + encoded.side, encoded.body
            outer = stage.lengths if isinstance(stage, Ragged) else None
        last = self.stages[-1]
        encoded = last.encode_within(array, outer) if isinstance(last, Int8 | Int4 | Int2) else last.encode(array)
        return Encoded(side + encoded.side, encoded.body)

    def size(self, shape: Shape, dtype: DTypeLike = np.float32) -> int:
        """Side data of all stages, and the body of the last one."""
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
        """``ragged``, ``topk``: the inner bound for elements that are sent; ``lowrank``: the norm of the error."""
        first, rest = self.stages[0], self.stages[1:]
        inner = rest[0] if len(rest) == 1 else Chain(*rest)
        if isinstance(first, Ragged | TopK):
            return first.scatter_bound(array, inner.error_bound(first.encode(array).body))
        encoded = self.encode(array)
        body = np.ascontiguousarray(encoded.body).reshape(-1).view(np.uint8).data
        decoded = decode(self.name, memoryview(encoded.side), body, ArrayLayout(array.dtype, array.shape))
        norm = np.linalg.norm((array.astype(np.float64) - decoded.astype(np.float64)).reshape(-1))
        return np.full((1,) * array.ndim, norm)
