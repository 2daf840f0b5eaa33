"""How the split engine writes gradients and small integers: casts, or quantized with stochastic rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.message import Array, Encoding, Tensor
from ...core.seeds import Seed
from ...wire.encodings import Bf16, Bits, Fp16, Int2, Int4, Int8

Floats = NDArray[np.float32]

#: The encodings that need no statistics.
CASTS: dict[str, Encoding | None] = {"raw": None, "fp16": Fp16(), "bf16": Bf16()}


def gradient_tensor(gradient: Floats, bits: str, lengths: Array | None, seed: Seed) -> Tensor:
    """A tensor that carries ∂L/∂codes ``[M, width]`` down.

    Parameters
    ----------
    lengths : Array or None
        Tokens of each sentence, summing to M: the groups that share a scale. None: one scale per channel.
    seed : Seed
        Of this micro-batch; the rounding draws from it.
    """
    if bits in CASTS:
        return Tensor(gradient, CASTS[bits])
    options: dict[str, Any] = {"rounding": "stochastic", "groups": lengths, "seed": seed.value}
    if bits == "int8":
        return Tensor(gradient, Int8(**options))
    return Tensor(gradient, Int4(grid="uniform16", **options) if bits == "int4" else Int2(**options))


def small_integers(values: Array, largest: int) -> Tensor:
    """Labels or lengths in as few bits as their largest value needs."""
    return Tensor(np.ascontiguousarray(values), Bits(max(int(largest).bit_length(), 1)))
