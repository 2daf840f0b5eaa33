"""Messages between programs: a kind, named arrays and scalar fields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.generic]
Scalar: TypeAlias = bool | int | float | str | bytes


@dataclass(frozen=True, slots=True)
class Encoded:
    """An encoded tensor.

    Attributes
    ----------
    side : bytes
        Packed data that the decoder needs besides the body (scales, lengths); counted as payload.
    body : Array
        C-contiguous array whose bytes follow the side data.
    """

    side: bytes
    body: Array


class Encoding(Protocol):
    """Encodes an array as bytes; implemented in ``wire/encodings``, selected by the workload."""

    @property
    def name(self) -> str:
        """Name in the tensor table, e.g. ``int4`` or ``ragged|int4``; selects the decoder."""

    @property
    def lossy(self) -> bool:
        """Whether decoded values may differ from the original ones."""

    def encode(self, array: Array) -> Encoded:
        """Encode ``array`` without modifying it."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array of a message, and its encoding.

    Attributes
    ----------
    array : Array
        In a received message, the decoded array.
    encoding : Encoding, optional
        None = ``raw``.
    dtype : str, optional
        Element type, if NumPy has no dtype for it: bfloat16 values are stored as uint16 with ``dtype="bf16"``.
    """

    array: Array
    encoding: Encoding | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """A message between two programs.

    Attributes
    ----------
    kind : str
        Category in the ledger: ``activation``, ``gradient``, ``weights``, ``control`` …
    round, step, micro : int
        Round, step and micro-batch of the message; the workload decides which of them it uses.
    tensors : Mapping[str, Tensor]
        Arrays by name.
    fields : Mapping[str, Scalar]
        Scalars by name; sent in the frame header.
    """

    kind: str
    round: int = 0
    step: int = 0
    micro: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    fields: Mapping[str, Scalar] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """Return the array called ``name``.

        Raises
        ------
        KeyError
            There is none; the error lists the names of the arrays that the message has.
        """
        try:
            return self.tensors[name].array
        except KeyError:
            raise KeyError(f"a '{self.kind}' message has the tensors {sorted(self.tensors)}, not '{name}'") from None
