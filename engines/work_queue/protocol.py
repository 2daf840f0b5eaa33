"""The messages of a work queue.

::

    server                              node
                                 ←      hello (slots)
    offer, asset chunks …        ⇄      fetch …, ready             only if the queue has inputs
    item (deal, config, seed)    →
                                 ←      result | failed | stopped  of that deal
    cancel (deal)                →
    end                          →

A *deal* is one attempt at one item; its number is unique in a program of the server. ``step`` of a message is the
position of the item in the queue, counted from 1. Every deal is answered by exactly one message, also a cancelled one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ...core.control import Control, Protocol
from ...core.errors import ConfigError, WireError
from ...core.message import Array, Scalar
from ..assets.protocol import Chunk, Fetch, Offer, Ready
from .item import Outcome, Value

_METRIC, _MEASURED = "m.", "t."


@dataclass(frozen=True, slots=True)
class Hello(Control, what="hello"):
    """A node can work on ``slots`` items at a time."""

    slots: int

    def __post_init__(self) -> None:
        if not 0 < self.slots <= 4096:
            raise ValueError(f"a node cannot have {self.slots} slots")


@dataclass(frozen=True, slots=True)
class Deal(Control, kind="item"):
    """An item to work on.

    Attributes
    ----------
    config : str
        JSON.
    inputs : tuple of str
        Names of the inputs that it uses.
    """

    deal: int
    config: str
    seed: int
    inputs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cancel(Control, what="cancel"):
    """Stop the work on a deal; nothing happens if it is not in progress."""

    deal: int


@dataclass(frozen=True, slots=True)
class End(Control, what="end"):
    """There is no further item."""


@dataclass(frozen=True, slots=True)
class Result(Control, kind="result"):
    """The outcome of a deal; its tensors are those of the message.

    Attributes
    ----------
    values : Mapping
        Metrics with the prefix ``m.``, measured times with ``t.``.
    """

    deal: int
    seconds: float
    values: Mapping[str, Scalar]

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < math.inf:
            raise ValueError(f"an item cannot take {self.seconds} s")

    @classmethod
    def of(cls, deal: int, seconds: float, outcome: Outcome) -> Result:
        """Return the message of an outcome, but for its tensors."""
        values: dict[str, Scalar] = {_METRIC + name: value for name, value in outcome.metrics.items()}
        return cls(deal, seconds, values | {_MEASURED + name: float(v) for name, v in outcome.measured.items()})

    def outcome(self, tensors: Mapping[str, Array], peer: str) -> Outcome:
        """Return the outcome, with these arrays.

        Raises
        ------
        WireError
            A value is invalid; the error names ``peer``.
        """
        metrics: dict[str, Value] = {}
        measured: dict[str, float] = {}
        for name, value in self.values.items():
            if name.startswith(_METRIC) and not isinstance(value, bytes):
                metrics[name.removeprefix(_METRIC)] = value
            elif name.startswith(_MEASURED) and isinstance(value, float):
                measured[name.removeprefix(_MEASURED)] = value
            else:
                raise WireError(f"{peer}: invalid 'result' message: unknown value '{name[:40]}'")
        try:
            return Outcome(metrics, measured, tensors)
        except ConfigError as error:
            raise WireError(f"{peer}: invalid 'result' message: {error}") from None


@dataclass(frozen=True, slots=True)
class Failed(Control, what="failed", kind="result"):
    """The work on a deal failed."""

    deal: int
    reason: str


@dataclass(frozen=True, slots=True)
class Stopped(Control, what="stopped", kind="result"):
    """The work on a deal was cancelled."""

    deal: int


FROM_SERVER: Protocol[Deal | Cancel | End] = Protocol(Deal, Cancel, End)
FROM_NODE: Protocol[Hello | Result | Failed | Stopped | Fetch | Ready] = Protocol(
    Hello, Result, Failed, Stopped, Fetch, Ready
)
#: Messages of the exchange of inputs, which the asset receiver reads.
ASSETS: Protocol[Offer | Chunk] = Protocol(Offer, Chunk)
