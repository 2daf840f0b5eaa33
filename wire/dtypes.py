"""The closed list of element types of the wire format, all little-endian."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..core.errors import WireError
from ..proto import frame_pb2 as pb

#: Name -> (number on the wire, NumPy dtype). NumPy has no bfloat16; its bits are stored as uint16.
DTYPES: dict[str, tuple[int, np.dtype[Any]]] = {
    "bool": (pb.BOOL, np.dtype(np.bool_)),
    "u8": (pb.U8, np.dtype("u1")),
    "i8": (pb.I8, np.dtype("i1")),
    "u16": (pb.U16, np.dtype("<u2")),
    "i16": (pb.I16, np.dtype("<i2")),
    "u32": (pb.U32, np.dtype("<u4")),
    "i32": (pb.I32, np.dtype("<i4")),
    "u64": (pb.U64, np.dtype("<u8")),
    "i64": (pb.I64, np.dtype("<i8")),
    "f16": (pb.F16, np.dtype("<f2")),
    "bf16": (pb.BF16, np.dtype("<u2")),
    "f32": (pb.F32, np.dtype("<f4")),
    "f64": (pb.F64, np.dtype("<f8")),
}

_BY_NUMBER = {number: (name, dtype) for name, (number, dtype) in DTYPES.items()}
_NAMES = {dtype: name for name, (_, dtype) in DTYPES.items() if name != "bf16"}


def name_of(dtype: np.dtype[Any], name: str | None = None) -> str:
    """Return the wire name of an array's element type.

    Parameters
    ----------
    dtype : np.dtype
        The array's dtype, of either byte order.
    name : str, optional
        The sender's ``Tensor.dtype``; needed for ``bf16`` only.

    Raises
    ------
    WireError
        The element type is not supported, or ``name`` is stored as another dtype.
    """
    little = dtype.newbyteorder("<")
    if name is None:
        if little not in _NAMES:
            raise WireError(f"element type {dtype} is not supported", hint=f"convert it to one of {', '.join(DTYPES)}")
        return _NAMES[little]
    if name not in DTYPES:
        raise WireError(f"element type '{name}' is unknown", hint=f"use one of {', '.join(DTYPES)}")
    if DTYPES[name][1] != little:
        raise WireError(f"element type '{name}' is stored as {DTYPES[name][1]}, but the array is {dtype}")
    return name


def lookup(number: int) -> tuple[str, np.dtype[Any]]:
    """Return the name and the NumPy dtype of an element type, by its number on the wire.

    Raises
    ------
    WireError
        No element type has that number.
    """
    found = _BY_NUMBER.get(number)
    if found is None:
        raise WireError(f"element type number {number} is unknown")
    return found
