"""Wire encoding of codes and their gradients: chooses centers and scales for the quantizers of ``wire.encodings``.

Codes are centered and scaled by *running* statistics, so that the quantization grid of a sentence does not depend on
the other sentences of its batch. Gradients are scaled by their own values, per channel and per sentence, and rounded
stochastically, which keeps them unbiased. Equations: ``docs/methods/split_fine_tuning.md``, section 7.
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
from .codec_init import CodecInit
from .config import SplitFineTuning
from .plan import SplitPlan
from .statistics import CodeStatistics

Floats = NDArray[np.float32]

#: Step of the optimal uniform quantizer of a normal variable, in standard deviations, with 16 and with 4 levels.
STEP_INT4 = 0.335
STEP_INT2 = 0.996
#: Range of the 8-bit quantizer, in standard deviations on either side of the mean.
RANGE_INT8 = 4.0
#: torch types of the encodings by cast.
DTYPES = {"raw": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

#: Bits per number of each encoding.
BITS_PER_NUMBER = {"raw": 32, "fp16": 16, "bf16": 16, "int8": 8, "int4": 4, "int2": 2}


def code_bytes(numbers: int, sentence_numbers: int, config: SplitFineTuning, *, gradients: bool = True) -> int:
    """Return the bytes of codes up and, with ``gradients``, of their gradients down, without side data.

    ``numbers`` counts the numbers of token codes, ``sentence_numbers`` those of sentence vectors.
    """
    sent = [(numbers, config.up), (sentence_numbers, config.sentence_up)]
    if gradients:
        sent += [(numbers, config.down), (sentence_numbers, config.sentence_down)]
    return sum((n * BITS_PER_NUMBER[bits] + 7) // 8 for n, bits in sent)


def code_tensors(codes: Floats, bits: str, statistics: CodeStatistics) -> dict[str, Tensor]:
    """Encode codes [M, w] float32 with ``bits``, one of ``config.Bits``; quantized codes come with their mean."""
    if bits in CASTS:
        return {"codes": Tensor(codes, CASTS[bits])}
    # Subtract the rounded mean: it is the one that is sent, and that the cloud adds back.
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
    """Encode a micro-batch.

    Parameters
    ----------
    codes : float32 array [M, w]
    sentence : float32 array [B, q] or None
    lengths, labels : int arrays [B]
    longest, classes : int
        Maximum number of tokens of a sentence, and number of classes.
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
    """Encode the gradients of a micro-batch's ``codes`` and, if there are any, ``sentence`` vectors.

    ``groups`` has the number of rows of each sentence, which share a scale.
    """
    tensors = {"codes": gradient_tensor(gradients["codes"], config.down, groups, seed)}
    if "sentence" in gradients:
        bits = config.sentence_down
        tensors["sentence"] = gradient_tensor(gradients["sentence"], bits, None, seed.child("sentence"))
    return tensors


def codes_of(message: Message, name: str) -> torch.Tensor:
    """Return a writable float32 copy of the tensor ``name``, with its mean added back if the message has one."""
    codes = np.array(message.array(name), np.float32)
    if name == "codes" and "mean" in message.tensors:
        mean = message.array("mean")
        if mean.shape != codes.shape[-1:]:
            raise WireError(f"codes of shape {codes.shape} have a mean of shape {mean.shape}")
        codes += mean.astype(np.float32)
    return torch.from_numpy(codes)


def codec_message(init: CodecInit, encoding: str) -> Message:
    """Encode the initial values of a codec: matrices with ``encoding``, the moments of the codes in float32."""
    tensors = {
        name: Tensor(
            np.ascontiguousarray(tensor.numpy()), None if name in ("code_mean", "code_variance") else CASTS[encoding]
        )
        for name, tensor in init.tensors().items()
    }
    return Message("codec", tensors=tensors)


def codec_init_of(message: Message, plan: SplitPlan) -> CodecInit:
    """Read and check a ``codec`` message.

    Raises
    ------
    WireError
        The message is of another kind.
    RefusedError
        Its tensors do not match the plan.
    """
    if message.kind != "codec":
        raise WireError(f"expected 'codec' from the first edge, got '{message.kind}'")
    tensors = {name: torch.from_numpy(np.array(t.array)) for name, t in message.tensors.items()}
    return CodecInit.from_tensors(tensors, plan)
