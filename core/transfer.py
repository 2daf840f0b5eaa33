"""One row of the ledger: what a frame cost, in the three sizes that the ledger keeps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Direction: TypeAlias = Literal["up", "down", "peer"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A frame that crossed a channel.

    Attributes
    ----------
    node : str
        The node at the far end.
    direction : {"up", "down", "peer"}
        ``up`` = node to server; ``peer`` = node to other nodes, which no channel carried: as the node counted it.
    kind : str
        The message's kind; ``ack``, ``heartbeat`` and ``retransmission`` are the channel's own.
    encoding : str
        Encodings used, in the order of the tensor table, joined by ``,``; ``raw`` where none.
    dense_bytes, payload_bytes, frame_bytes : int
        Tensor bytes before encoding; after it, side data included; with prefix and header.
    attempt : int
        0 the first time; the epoch's number when a step is sent again after a restart.
    time : float
        Seconds since 1970 when the server sent it or had received it whole.
    """

    node: str
    direction: Direction
    kind: str
    encoding: str
    round: int
    step: int
    micro: int
    dense_bytes: int
    payload_bytes: int
    frame_bytes: int
    attempt: int
    time: float


Recorder: TypeAlias = Callable[[Transfer], None]
