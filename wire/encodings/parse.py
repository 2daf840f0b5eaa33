"""Parses the names of encodings in configurations, e.g. ``ragged|int4``."""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import ArrayLike

from ...core.errors import ConfigError
from .base import SizedEncoding
from .bits import Bits
from .chain import Chain
from .half import Bf16, Fp16
from .lowrank import LowRank
from .quantize import Int2, Int4, Int8
from .ragged import Ragged
from .raw import Raw
from .topk import TopK

_WITHOUT_NUMBER: dict[str, Callable[[], SizedEncoding]] = {
    "raw": Raw,
    "fp16": Fp16,
    "bf16": Bf16,
    "int8": Int8,
    "int4": Int4,
    "int2": Int2,
}
_WITH_NUMBER: dict[str, Callable[[int], SizedEncoding]] = {"bits": Bits, "lowrank": LowRank}


def parse(text: str, *, lengths: ArrayLike | None = None) -> SizedEncoding:
    """Return the encoding with the given name, with default settings.

    Parameters
    ----------
    text : str
        ``raw``, ``fp16``, ``bf16``, ``int8``, ``int4``, ``int2``, ``bits:WIDTH``, ``lowrank:RANK``,
        ``topk:FRACTION``, ``ragged``, or several joined by ``|``, e.g. ``ragged|int4``.
    lengths : array-like of int, optional
        Sentence lengths, for ``ragged``.

    Raises
    ------
    ConfigError
        A name is unknown, a number is missing or invalid, or lengths are missing.
    """
    stages = [_stage(part.strip(), lengths) for part in text.split("|")]
    return stages[0] if len(stages) == 1 else Chain(*stages)


def _stage(part: str, lengths: ArrayLike | None) -> SizedEncoding:
    name, colon, number = part.partition(":")
    if name in _WITH_NUMBER:
        if not number.isdecimal():
            raise ConfigError(f"encoding '{name}' requires a number", hint=f"write e.g. {name}:4")
        return _WITH_NUMBER[name](int(number))
    if name == "topk":
        try:
            return TopK(float(number))
        except ValueError:
            raise ConfigError("encoding 'topk' requires a fraction", hint="write e.g. topk:0.01") from None
    if colon or name not in (*_WITHOUT_NUMBER, "ragged"):
        raise ConfigError(
            f"unknown encoding '{part}'", hint=f"use {', '.join([*_WITHOUT_NUMBER, *_WITH_NUMBER, 'topk', 'ragged'])}"
        )
    if name == "ragged":
        if lengths is None:
            raise ConfigError("encoding 'ragged' requires the sentence lengths")
        return Ragged(lengths)
    return _WITHOUT_NUMBER[name]()
