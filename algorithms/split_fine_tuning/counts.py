"""How many parameters, operations and bytes a split takes. Arithmetic only; a test counts real modules
against it.

Source: specification of split fine-tuning §4 and §8.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .cut import SplitModel
    from .plan import SplitPlan


@dataclass(frozen=True, slots=True)
class Sides:
    """Parameters of each half."""

    edge: int
    cloud: int

    @property
    def total(self) -> int:
        """Both halves together."""
        return self.edge + self.cloud


def parameter_counts(split: SplitModel) -> Sides:
    """Parameters of a split model, counted on its modules; works on the meta device too."""
    return Sides(
        sum(p.numel() for p in split.front.parameters()),
        sum(p.numel() for p in split.trunk.parameters()),
    )


def factor_parameters(d: int, f: int, r: int) -> int:
    """Parameters of the factorised first matrix with its bias: r·d + r² + f·r + f, instead of f·d + f."""
    return r * d + r * r + f * r + f


def residual_parameters(d: int, r: int) -> int:
    """What ``residual=project`` adds in the cloud: d·(r+1)."""
    return d * (r + 1)


def calibration_numbers(d: int, f: int, r: int) -> int:
    """Numbers that a calibrated edge sends once: U, bias, R and c."""
    return f * r + f + d * r + d


def code_bytes(tokens: int, width: int, bits: int = 32) -> int:
    """Bytes of the code alone, one way: M·w·b/8, the last byte filled up."""
    return (tokens * width * bits + 7) // 8


def scale_bytes(width: int, bits: int = 32) -> int:
    """fp16 scales per channel and micro-batch, where the code is quantised."""
    return 2 * width if bits < 16 else 0


def vanilla_bytes(tokens: int, d: int, bits: int = 32) -> int:
    """What vanilla split learning sends for the same tokens, one way: a d-wide vector each."""
    return code_bytes(tokens, d, bits)


def sentence_bytes(sentences: int, q: int, bits: int = 32) -> int:
    """Bytes of the sentence vectors, one way."""
    return code_bytes(sentences, q, bits)


def step_bytes(
    plan: SplitPlan, tokens: int, sentences: int, *, bits: int = 32, sentence_bits: int = 32, micro: int = 1
) -> int:
    """Code, scales and sentence vectors of one step, one way, without lengths, labels and framing.

    Parameters
    ----------
    plan : SplitPlan
    tokens : int
        M: B·T where padding is sent, the sum of the lengths where it is not.
    sentences : int
        Samples in the step.
    bits, sentence_bits : int
        Bits per number of the codes and of the sentence vectors.
    micro : int
        Micro-batches; each carries its own scales.
    """
    q = plan.options.sentence_vector
    return (
        code_bytes(tokens, plan.width, bits)
        + micro * scale_bytes(plan.width, bits)
        + sentence_bytes(sentences, q, sentence_bits)
    )


def block_flops(d: int, length: int) -> int:
    """Forward operations per token of one block, f = 4d: 24·d² + 4·T·d; backward takes about twice as
    many."""
    return 24 * d * d + 4 * length * d


def codec_flops(d: int, r: int) -> int:
    """Forward operations per token that the encoder adds on the edge: 2·r·(d + r)."""
    return 2 * r * (d + r)
