"""Decoders by name: the closed list of encodings that a tensor table may contain."""

from __future__ import annotations

from ...core.errors import WireError
from ...core.message import Array
from .base import ArrayLayout, Leaf, Transform
from .bits import decode_bits
from .half import decode_bf16, decode_fp16
from .lowrank import LOWRANK
from .quantize import leaf
from .ragged import RAGGED
from .raw import decode_raw
from .topk import TOPK

LEAVES: dict[str, Leaf] = {
    "raw": decode_raw,
    "fp16": decode_fp16,
    "bf16": decode_bf16,
    "int8": leaf(8, "int8"),
    "int4": leaf(4, "int4"),
    "int2": leaf(2, "int2"),
    "bits": decode_bits,
}
TRANSFORMS: dict[str, Transform] = {"ragged": RAGGED, "lowrank": LOWRANK, "topk": TOPK}

_MAX_STAGES = 4


def check_name(name: str) -> None:
    """Raise :class:`WireError` unless ``name`` is a known encoding."""
    parts = name.split("|")
    for part in parts[:-1]:
        if part not in TRANSFORMS:
            raise WireError(f"unknown encoding '{name}': '{part}' cannot precede '|'")
    if parts[-1] not in LEAVES and parts[-1] not in TRANSFORMS:
        raise WireError(f"unknown encoding '{name}'", hint="install the same farshore version on both machines")
    if len(parts) > _MAX_STAGES:
        raise WireError(f"encoding '{name}' has more than {_MAX_STAGES} stages")


def decode(name: str, side: memoryview, body: memoryview, layout: ArrayLayout) -> Array:
    """Decode one tensor.

    Parameters
    ----------
    name : str
        E.g. ``raw`` or ``ragged|int4``.
    side, body : memoryview of bytes
        Side data and body of the tensor's payload.
    layout : ArrayLayout
        Layout of the result. The caller must have checked its size against the limits.

    Returns
    -------
    array of ``layout.dtype`` and ``layout.shape``
        For ``raw``, a read-only view of ``body``.

    Raises
    ------
    WireError
        The name is unknown, or the bytes are not a valid encoding of an array with this layout.
    """
    check_name(name)
    return _decode(name.split("|"), side, body, layout)


def _decode(parts: list[str], side: memoryview, body: memoryview, layout: ArrayLayout) -> Array:
    if not parts:
        return decode_raw(side, body, layout)
    if parts[0] in LEAVES:
        return LEAVES[parts[0]](side, body, layout)
    transform = TRANSFORMS[parts[0]]
    used, inner = transform.inner(side, layout)
    return transform.restore(side[:used], _decode(parts[1:], side[used:], body, inner), layout)
