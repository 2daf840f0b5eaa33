"""How codes and their gradients are written for the wire: quantizer statistics are here, bits in ``wire.encodings``.

Activations are centered and scaled by *running* statistics, so that a sentence is written with the same grid whether it
travels alone or in a batch. Gradients have no evaluation to agree with and are scaled by what they are: per channel and
per sentence, stochastically rounded, which keeps them unbiased.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import WireError
from ...core.message import Array, Encoding, Message, Tensor
from ...core.seeds import Seed
from ...engines.split.wire_codec import CASTS, gradient_tensor, small_integers
from ...wire.encodings import Int2, Int4, Int8
from .codec_start import CodecStart
from .config import SplitFineTuning
from .plan import SplitPlan
from .statistics import CodeStatistics

Floats = NDArray[np.float32]

#: Step of the best uniform quantizer of a normal variable, in standard deviations, with 16 and with 4 levels.
STEP_INT4 = 0.335
STEP_INT2 = 0.996
#: What 8 bits cover, in standard deviations.
RANGE_INT8 = 4.0
#: What numbers are rounded to that travel in one of them.
DTYPES = {"raw": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: Bits per number of each encoding.
WIDTHS = {"raw": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4, "int2": 2}


def code_bytes(numbers: int, sentence_numbers: int, config: SplitFineTuning, *, gradients: bool = True) -> int:
    """Bytes of so many codes of tokens and of sentences up, and of as many gradients down, without any side data."""
    sent = [(numbers, config.up), (sentence_numbers, config.sentence_up)]
    if gradients:
        sent += [(numbers, config.down), (sentence_numbers, config.sentence_down)]
    return sum((n * WIDTHS[bits] + 7) // 8 for n, bits in sent)


def code_tensors(codes: Floats, bits: str, statistics: CodeStatistics) -> dict[str, Tensor]:
    """Tensors that carry codes ``[M, width]`` float32 up, written with ``bits`` (a name of ``config.Bits``)."""
    if bits in CASTS:
        return {"codes": Tensor(codes, CASTS[bits])}
    # The mean that the cloud adds back is the one that was subtracted: rounded first, so that both ends agree.
    mean = statistics.mean.numpy().astype(np.float16)
    deviation = statistics.deviation.numpy()
    encoding: Encoding
    if bits == "int8":
        encoding = Int8(rounding="nearest", scales=RANGE_INT8 * deviation)
    elif bits == "int4":
        encoding = Int4(rounding="nearest", grid="uniform16", scales=STEP_INT4 * deviation)
    else:
        encoding = Int2(rounding="nearest", scales=STEP_INT2 * deviation)
    return {"codes": Tensor(codes - mean.astype(np.float32), encoding), "mean": Tensor(mean)}


def batch_tensors(
    codes: Floats,
    sentence: Floats | None,
    lengths: Array,
    labels: Array,
    config: SplitFineTuning,
    statistics: CodeStatistics,
    longest: int,
    classes: int,
) -> dict[str, Tensor]:
    """Tensors that a micro-batch is sent as.

    Parameters
    ----------
    codes : float32 array [M, w]
    sentence : float32 array [B, q] or None
    lengths, labels : int arrays [B]
    longest, classes : int
        Tokens that a sentence may have, and classes that there are.
    """
    tensors = code_tensors(codes, config.up, statistics)
    if sentence is not None:
        tensors["sentence"] = Tensor(sentence, CASTS[config.sentence_up])
    tensors["lengths"] = small_integers(lengths, longest)
    tensors["labels"] = small_integers(labels, classes - 1)
    return tensors


def gradient_tensors(
    gradients: Mapping[str, Floats], groups: Array, config: SplitFineTuning, seed: Seed
) -> dict[str, Tensor]:
    """Tensors that the gradients of a micro-batch's ``codes`` and maybe ``sentence`` vectors are sent as."""
    tensors = {"codes": gradient_tensor(gradients["codes"], config.down, groups, seed)}
    if "sentence" in gradients:
        bits = config.sentence_down
        tensors["sentence"] = gradient_tensor(gradients["sentence"], bits, None, seed.child("sentence"))
    return tensors


def codes_of(message: Message, name: str) -> torch.Tensor:
    """The tensor called ``name`` as float32, with its mean added back where one traveled along; a writable copy."""
    codes = np.array(message.array(name), np.float32)
    if name == "codes" and "mean" in message.tensors:
        mean = message.array("mean")
        if mean.shape != codes.shape[-1:]:
            raise WireError(f"codes of shape {codes.shape} came with a mean of shape {mean.shape}")
        codes += mean.astype(np.float32)
    return torch.from_numpy(codes)


def start_message(start: CodecStart, encoding: str) -> Message:
    """What calibration settled; matrices travel in ``encoding``, the moments of the codes as they are."""
    tensors = {
        name: Tensor(
            np.ascontiguousarray(tensor.numpy()), None if name in ("code_mean", "code_variance") else CASTS[encoding]
        )
        for name, tensor in start.tensors().items()
    }
    return Message("codec", tensors=tensors)


def start_of(message: Message, plan: SplitPlan) -> CodecStart:
    """Read and check a ``codec`` message.

    Raises
    ------
    WireError
        It is another message.
    RefusedError
        It does not fit the plan.
    """
    if message.kind != "codec":
        raise WireError(f"expected the first edge's codec, got a '{message.kind}' message")
    tensors = {name: torch.from_numpy(np.array(t.array)) for name, t in message.tensors.items()}
    return CodecStart.of(tensors, plan)
