"""Wire encodings of gradients (casts, or quantization with stochastic rounding) and of small integers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...core.message import Array, Encoding, Tensor
from ...core.seeds import Seed
from ...wire.encodings import Bf16, Bits, Fp16, Int2, Int4, Int8

Floats = NDArray[np.float32]

#: Encodings by cast, which need no scales.
CASTS: dict[str, Encoding | None] = {"raw": None, "fp16": Fp16(), "bf16": Bf16()}


def gradient_tensor(gradient: Floats, bits: str, lengths: Array | None, seed: Seed) -> Tensor:
    """Encode a gradient ∂L/∂codes [M, width] float32.

    Parameters
    ----------
    gradient : float32 array [M, width]
    bits : str
        ``raw``, ``fp16``, ``bf16``, ``int8``, ``int4`` or ``int2``.
    lengths : Array or None
        Tokens of each sentence, summing to M: adds one scale per sentence to the scales per channel. None for scales
        per channel only.
    seed : Seed
        Seed of the stochastic rounding, unique to the micro-batch.
    """
    if bits in CASTS:
        return Tensor(gradient, CASTS[bits])
    options: dict[str, Any] = {"rounding": "stochastic", "groups": lengths, "seed": seed.value}
    if bits == "int8":
        return Tensor(gradient, Int8(**options))
    return Tensor(gradient, Int4(grid="uniform16", **options) if bits == "int4" else Int2(**options))


def small_integers(values: Array, largest: int) -> Tensor:
    """Encode non-negative integers (labels, lengths) in the number of bits that ``largest`` needs."""
    return Tensor(np.ascontiguousarray(values), Bits(max(int(largest).bit_length(), 1)))
