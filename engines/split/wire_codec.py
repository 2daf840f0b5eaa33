"""Wire encodings of activations, their gradients, weights and small integers.

Activations are rounded to the nearest level of a grid; gradients stochastically, which keeps them unbiased. Equations:
``docs/methods/split_fine_tuning.md``, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import WireError
from ...core.message import Array, Encoding, Message, Tensor
from ...core.seeds import Seed
from ...wire.encodings import Bf16, Bits, Fp16, Int2, Int4, Int8

Floats = NDArray[np.float32]

#: Encodings by cast, which need no scales.
CASTS: dict[str, Encoding | None] = {"raw": None, "fp16": Fp16(), "bf16": Bf16()}
#: Bits per number of each encoding.
BITS_PER_NUMBER = {"raw": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4, "int2": 2}
#: Step of the optimal uniform quantizer of a normal variable, in standard deviations, with 16 and with 4 levels.
STEP_INT4 = 0.335
STEP_INT2 = 0.996
#: Range of the 8-bit quantizer, in standard deviations on either side of the mean.
RANGE_INT8 = 4.0


def activation_tensor(codes: Floats, bits: str, deviation: Floats | None = None) -> Tensor:
    """Encode codes [M, w].

    Parameters
    ----------
    codes : float32 array [M, w]
    bits : str
        ``raw``, ``fp16``, ``bf16``, ``int8``, ``int4`` or, with a deviation, ``int2``.
    deviation : float32 array [w], optional
        Standard deviation of each channel, for codes with zero mean: sets the grid, whatever the other rows of the
        message are. Default: the largest magnitude of each channel in ``codes`` does.
    """
    if bits in CASTS:
        return Tensor(codes, CASTS[bits])
    if deviation is None:
        return Tensor(codes, Int8(rounding="nearest") if bits == "int8" else Int4(rounding="nearest"))
    if bits == "int8":
        return Tensor(codes, Int8(rounding="nearest", scales=RANGE_INT8 * deviation))
    if bits == "int4":
        return Tensor(codes, Int4(rounding="nearest", grid="uniform16", scales=STEP_INT4 * deviation))
    return Tensor(codes, Int2(rounding="nearest", scales=STEP_INT2 * deviation))


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


def floats_of(tensor: torch.Tensor) -> Floats:
    """Return the values of a tensor on any device as a contiguous float32 array."""
    return np.ascontiguousarray(tensor.detach().float().cpu().numpy())


def weight_tensors(tensors: Mapping[str, torch.Tensor], encoding: str = "raw") -> dict[str, Tensor]:
    """Encode named tensors in float32 with ``encoding`` (raw, fp16 or bf16)."""
    return {name: Tensor(floats_of(tensor), CASTS[encoding]) for name, tensor in tensors.items()}


def read_floats(message: Message, name: str, shape: tuple[int, ...], peer: str) -> torch.Tensor:
    """Return a writable copy, on the CPU, of the float32 tensor ``name`` of a message.

    Raises
    ------
    WireError
        It is missing, or has another shape or dtype.
    """
    array = message.tensors[name].array if name in message.tensors else None
    if array is None or array.shape != shape or array.dtype != np.float32:
        found = "missing" if array is None else f"{array.dtype} of shape {array.shape}"
        raise WireError(f"{peer}: '{name}' is {found}, expected float32 of shape {shape}")
    return torch.from_numpy(np.array(array))


def read_weights(message: Message, shapes: Mapping[str, tuple[int, ...]], peer: str) -> dict[str, torch.Tensor]:
    """Return writable copies, on the CPU, of a message's tensors, which must have these names and shapes.

    Raises
    ------
    WireError
        A tensor is missing or unknown, or has another shape or a dtype other than float32.
    """
    unknown = sorted(set(message.tensors) - set(shapes))
    if unknown:
        raise WireError(f"{peer}: unknown tensor '{unknown[0][:80]}' in a '{message.kind}' message")
    return {name: read_floats(message, name, shape, peer) for name, shape in shapes.items()}


def shapes_of(tensors: Mapping[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of named tensors."""
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
