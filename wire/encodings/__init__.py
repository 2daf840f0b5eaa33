"""Tensor encodings: lossless and lossy, each with its exact size and an error bound."""

from .base import ArrayLayout, EncodeError, SizedEncoding
from .bits import Bits
from .chain import Chain
from .half import Bf16, Fp16
from .lowrank import LowRank
from .parse import parse
from .prepared import Prepared, prepare
from .quantize import Int2, Int4, Int8
from .ragged import Ragged
from .raw import Raw
from .registry import decode
from .topk import TopK

__all__ = [
    "ArrayLayout",
    "Bf16",
    "Bits",
    "Chain",
    "EncodeError",
    "Fp16",
    "Int2",
    "Int4",
    "Int8",
    "LowRank",
    "Prepared",
    "Ragged",
    "Raw",
    "SizedEncoding",
    "TopK",
    "decode",
    "parse",
    "prepare",
]
