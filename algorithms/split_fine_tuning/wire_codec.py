"""Wire encoding of a micro-batch: codes with their mean, sentence vectors, lengths and labels; and its gradients.

Codes are centered and scaled by *running* statistics, so that the quantization grid of a sentence does not depend on
the other sentences of its batch. Gradients are scaled by their own values, per channel and per sentence, and rounded
stochastically, which keeps them unbiased. Equations: ``docs/methods/split_fine_tuning.md``, section 7.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from ...core.errors import RefusedError, WireError
from ...core.message import Array, Message, Tensor
from ...core.seeds import Seed
from ...engines.split.wire_codec import (
    BITS_PER_NUMBER,
    CASTS,
    Floats,
    activation_tensor,
    floats_of,
    gradient_tensor,
    read_floats,
    small_integers,
    weight_tensors,
)
from .codec_init import CodecInit
from .config import SplitFineTuning
from .plan import SplitPlan
from .protocol import CodecValues
from .statistics import CodeStatistics

#: torch types of the encodings by cast.
DTYPES = {"raw": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


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
    mean = floats_of(statistics.mean).astype(np.float16)
    centered = codes - mean.astype(np.float32)
    return {"codes": activation_tensor(centered, bits, floats_of(statistics.deviation)), "mean": Tensor(mean)}


def largest_batch(config: SplitFineTuning, plan: SplitPlan, max_length: int, examples: int) -> int:
    """Return the decoded bytes of the largest message with codes, or gradients, of ``examples`` sentences."""
    tokens = 4 * plan.width * (max_length * examples + 1)
    return tokens + (4 * plan.options.sentence_vector + 16) * examples


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


def codes_of(message: Message, shape: tuple[int, ...], peer: str) -> torch.Tensor:
    """Return the codes of a message on the CPU, with their mean added back if the message has one.

    Raises
    ------
    WireError
        The codes are not float32 of this shape, or their mean is not one number per channel.
    """
    codes = read_floats(message, "codes", shape, peer)
    if "mean" in message.tensors:
        mean = message.array("mean")
        if mean.shape != shape[-1:] or mean.dtype != np.float16:
            raise WireError(f"{peer}: codes of shape {shape} have a mean of shape {mean.shape} and type {mean.dtype}")
        codes += torch.from_numpy(mean.astype(np.float32))
    return codes


def codec_message(init: CodecInit, encoding: str) -> Message:
    """Encode the initial values of a codec: matrices with ``encoding``, the moments of the codes in float32."""
    tensors = init.tensors()
    moments = {name: tensors.pop(name) for name in ("code_mean", "code_variance")}
    return CodecValues().message(tensors=weight_tensors(moments) | weight_tensors(tensors, encoding))


def codec_init_of(message: Message, plan: SplitPlan, peer: str) -> CodecInit:
    """Read and check initial values of a codec.

    Raises
    ------
    WireError
        The message is of another type, or its tensors do not match the plan.
    """
    CodecValues.read(message, peer)
    tensors = {name: torch.from_numpy(np.array(t.array)) for name, t in message.tensors.items()}
    try:
        return CodecInit.from_tensors(tensors, plan)
    except RefusedError as error:
        raise WireError(f"{peer}: {error.message}", hint=error.hint) from error
