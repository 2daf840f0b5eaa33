"""What programs send each other: named arrays and a few scalars, under a kind."""

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
    """One tensor as it travels.

    Attributes
    ----------
    side : bytes
        Side data that decoding needs (scales, lengths), already packed; counted as payload.
    body : Array
        C-contiguous array whose bytes follow the side data.
    """

    side: bytes
    body: Array


class Encoding(Protocol):
    """A way to write an array as bytes; implemented in ``wire/encodings``, chosen by the method."""

    @property
    def name(self) -> str:
        """Name in the tensor table, e.g. ``int4`` or ``ragged|int4``; decoding finds the decoder by it."""

    @property
    def lossy(self) -> bool:
        """Whether decoding may return other values than were encoded."""

    def encode(self, array: Array) -> Encoded:
        """Encode; must not change ``array``."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """An array and how it is to travel; ``encoding=None`` is ``raw``. On receipt ``array`` is the decoded array.

    ``dtype`` names the element type where NumPy has none: a bfloat16 array is carried as uint16 with ``dtype="bf16"``.
    """

    array: Array
    encoding: Encoding | None = None
    dtype: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message between two programs.

    Attributes
    ----------
    kind : str
        What it is for the ledger: ``activation``, ``gradient``, ``weights``, ``control`` …
    round, step, micro : int
        Where in the run it belongs; which of them a method uses is its own affair.
    tensors : Mapping[str, Tensor]
        Named arrays.
    fields : Mapping[str, Scalar]
        A few scalars; they travel in the header.
    """

    kind: str
    round: int = 0
    step: int = 0
    micro: int = 0
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    fields: Mapping[str, Scalar] = field(default_factory=dict)

    def array(self, name: str) -> Array:
        """The array called ``name``; a :class:`KeyError` names the message's kind and what it does hold."""
        try:
            return self.tensors[name].array
        except KeyError:
            raise KeyError(f"a '{self.kind}' message holds {sorted(self.tensors)}, not '{name}'") from None
