"""Ledger rows: who sent a frame, and its dense, payload and frame bytes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

Direction: TypeAlias = Literal["up", "down", "peer"]


@dataclass(frozen=True, slots=True)
class Transfer:
    """A frame that was sent over a channel, or bytes that a node sent to other nodes.

    Attributes
    ----------
    node : str
        The node that sent or received it.
    direction : {"up", "down", "peer"}
        ``up`` = node to server; ``down`` = server to node; ``peer`` = node to other nodes, outside of channels, as
        reported by the node.
    kind : str
        Kind of the message. Internal kinds of the channel: ``hello``, ``ack``, ``heartbeat``, ``bye``, ``skip`` and
        ``retransmission``.
    encoding : str
        Encodings used, in the order of the tensor table, joined by ``,``; ``raw`` if there are none.
    round, step, micro : int
        As in the message.
    dense_bytes : int
        Bytes of the tensors before encoding.
    payload_bytes : int
        Bytes of the tensors after encoding, including side data.
    frame_bytes : int
        Bytes of the frame, including prefix and header.
    attempt : int
        Restart epoch of the run; 0 = the first attempt.
    time : float
        Unix time at which the server sent the frame or had received it completely, in seconds.
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
