"""Encodings from their names, for configuration files."""

from __future__ import annotations

from collections.abc import Callable

from numpy.typing import ArrayLike

from ...core.errors import ConfigError
from .base import Sized
from .bits import Bits
from .chain import Chain
from .half import Bf16, Fp16
from .lowrank import LowRank
from .quantize import Int2, Int4, Int8
from .ragged import Ragged
from .raw import Raw
from .topk import TopK

_PLAIN: dict[str, Callable[[], Sized]] = {
    "raw": Raw,
    "fp16": Fp16,
    "bf16": Bf16,
    "int8": Int8,
    "int4": Int4,
    "int2": Int2,
}
_NUMBERED: dict[str, Callable[[int], Sized]] = {"bits": Bits, "lowrank": LowRank}


def parse(spec: str, *, lengths: ArrayLike | None = None) -> Sized:
    """The encoding that ``spec`` names, with default settings.

    Parameters
    ----------
    spec : str
        ``raw``, ``fp16``, ``bf16``, ``int8``, ``int4``, ``int2``, ``bits:WIDTH``, ``lowrank:RANK``,
        ``topk:FRACTION``, ``ragged``, or several joined by ``|``, e.g. ``ragged|int4``.
    lengths : array-like of int, optional
        For ``ragged``.

    Raises
    ------
    ConfigError
        Unknown name, a missing or wrong number, or ``ragged`` without lengths.
    """
    stages = [_stage(part.strip(), lengths) for part in spec.split("|")]
    return stages[0] if len(stages) == 1 else Chain(*stages)


def _stage(part: str, lengths: ArrayLike | None) -> Sized:
    name, colon, number = part.partition(":")
    if name in _NUMBERED:
        if not number.isdecimal():
            raise ConfigError(f"encoding '{name}' needs a number", hint=f"write e.g. {name}:4")
        return _NUMBERED[name](int(number))
    if name == "topk":
        try:
            return TopK(float(number))
        except ValueError:
            raise ConfigError("encoding 'topk' needs a fraction", hint="write e.g. topk:0.01") from None
    if colon or name not in (*_PLAIN, "ragged"):
        raise ConfigError(
            f"encoding '{part}' is unknown", hint=f"use {', '.join([*_PLAIN, *_NUMBERED, 'topk', 'ragged'])}"
        )
    if name == "ragged":
        if lengths is None:
            raise ConfigError("encoding 'ragged' needs the lengths of the sentences")
        return Ragged(lengths)
    return _PLAIN[name]()
