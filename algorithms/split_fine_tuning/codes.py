"""How codes and their gradients are written for the wire: quantiser statistics live here, the bits in ``wire.encodings``.

Activations are centred and scaled by *running* statistics, so that a sentence is written with the same grid whether it
travels alone or in a batch. Gradients have no evaluation to agree with and are scaled by what they are: per channel and
per sentence, stochastically rounded, which keeps them unbiased.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import ConfigError
from ...core.message import Array, Encoding, Message, Tensor
from ...core.seeds import Seed
from ...wire.encodings import Bf16, Bits, Fp16, Int4, Int8
from .config import SplitFineTuning

Floats = NDArray[np.float32]

#: Step of the best uniform quantiser for a normal variable, in standard deviations: 16 levels, and the range that 8 bits cover.
STEP_INT4 = 0.335
RANGE_INT8 = 4.0


#: Bits per number of each encoding.
WIDTHS = {"raw": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4}


def code_bytes(numbers: int, config: SplitFineTuning) -> int:
    """Bytes of ``numbers`` codes up and as many gradients down, without any side data."""
    return (numbers * WIDTHS[config.up] + 7) // 8 + (numbers * WIDTHS[config.down] + 7) // 8


class CodeStatistics:
    """Running mean and variance of each code channel, kept by the edge.

    Parameters
    ----------
    width : int
        Channels of a code.
    momentum : float
        Weight of a new batch.
    """

    def __init__(self, width: int, momentum: float = 0.1) -> None:
        self.mean: Floats = np.zeros(width, np.float32)
        self.variance: Floats = np.zeros(width, np.float32)
        self.batches = 0
        self._momentum = momentum

    def observe(self, codes: Floats) -> None:
        """Take a training batch ``[M, width]`` into account; the first one sets the statistics."""
        weight = self._momentum if self.batches else 1.0
        self.mean += np.float32(weight) * (codes.mean(0, dtype=np.float64).astype(np.float32) - self.mean)
        self.variance += np.float32(weight) * (codes.var(0, dtype=np.float64).astype(np.float32) - self.variance)
        self.batches += 1

    @property
    def deviation(self) -> Floats:
        """Standard deviation per channel; never zero."""
        return cast(Floats, np.sqrt(self.variance + 1e-12))

    def state(self) -> dict[str, Array]:
        """Arrays for a checkpoint."""
        return {
            "statistics.mean": self.mean.copy(),
            "statistics.variance": self.variance.copy(),
            "statistics.batches": np.array(self.batches, np.int64),
        }

    def load(self, state: Mapping[str, Array]) -> None:
        """Put back what :meth:`state` gave."""
        self.mean = np.array(state["statistics.mean"], np.float32)
        self.variance = np.array(state["statistics.variance"], np.float32)
        self.batches = int(state["statistics.batches"].astype(np.int64))


def code_tensors(codes: Floats, bits: str, statistics: CodeStatistics) -> dict[str, Tensor]:
    """Tensors that carry codes ``[M, width]`` float32 up, written with ``bits`` (a name of ``config.Bits``)."""
    if bits in ("raw", "fp16", "bf16"):
        return {"codes": Tensor(codes, _cast(bits))}
    # The mean that the cloud adds back is the one that was subtracted: rounded first, so that both ends agree.
    mean = statistics.mean.astype(np.float16)
    centred = codes - mean.astype(np.float32)
    encoding: Encoding
    if bits == "int4":
        encoding = Int4(rounding="nearest", grid="uniform16", scales=STEP_INT4 * statistics.deviation)
    elif bits == "int8":
        encoding = Int8(rounding="nearest", scales=RANGE_INT8 * statistics.deviation)
    else:
        raise ConfigError(f"up={bits} is not an encoding for activations", cure="one of raw, fp16, bf16, int8, int4")
    return {"codes": Tensor(centred, encoding), "mean": Tensor(mean)}


def codes_of(message: Message) -> torch.Tensor:
    """The codes ``[M, width]`` float32 of an activation message, mean added back; a writable copy."""
    codes = np.array(message.array("codes"), np.float32)
    if "mean" in message.tensors:
        codes += message.array("mean").astype(np.float32)
    return torch.from_numpy(codes)


def gradient_tensor(gradient: Floats, bits: str, lengths: Array, seed: Seed) -> Tensor:
    """A tensor that carries ∂L/∂codes ``[M, width]`` down.

    Parameters
    ----------
    lengths : Array
        Tokens of each sentence, summing to M: the groups that share a scale.
    seed : Seed
        Of this micro-batch; the rounding draws from it.
    """
    if bits in ("raw", "fp16", "bf16"):
        return Tensor(gradient, _cast(bits))
    if bits == "int4":
        return Tensor(
            gradient, Int4(rounding="stochastic", grid="uniform16", groups=lengths, seed=seed.value)
        )
    if bits == "int8":
        return Tensor(gradient, Int8(rounding="stochastic", seed=seed.value))
    raise ConfigError(f"down={bits} is not an encoding for gradients", cure="one of raw, fp16, bf16, int8, int4")


def _cast(bits: str) -> Encoding | None:
    return {"raw": None, "fp16": Fp16(), "bf16": Bf16()}[bits]


def small_integers(values: Array, largest: int) -> Tensor:
    """Labels or lengths in as few bits as their largest value needs."""
    return Tensor(np.ascontiguousarray(values), Bits(max(int(largest).bit_length(), 1)))
