"""The messages of a ping run.

In each round the server sends a ``ping``, which the node returns, and a ``block``, which it returns as ``echo``. The
message's ``round`` is that of the run; the block is the tensor ``block`` (bytes).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from ...core.control import Control
from ...core.errors import WireError
from ...core.message import Array, Message, Tensor


@dataclass(frozen=True, slots=True)
class Ping(Control, kind="ping"):
    """An empty message."""


@dataclass(frozen=True, slots=True)
class Block(Control, kind="block"):
    """A block to return."""


@dataclass(frozen=True, slots=True)
class Echo(Control, kind="echo"):
    """The block, returned.

    Attributes
    ----------
    digest : bytes
        Digest of all blocks that the node has received.
    """

    digest: bytes


Received = TypeVar("Received", Ping, Block, Echo)


def read(cls: type[Received], message: Message, round_index: int, peer: str) -> Received:
    """Read a message of a round.

    Raises
    ------
    WireError
        ``peer`` sent another message, or one of another round.
    """
    found = cls.read(message, peer)
    if message.round != round_index:
        raise WireError(f"{peer}: expected '{cls.kind}' of round {round_index}, got round {message.round}")
    return found


def block_tensors(block: Array) -> Mapping[str, Tensor]:
    """Return the tensors of a ``block`` or ``echo``."""
    return {"block": Tensor(block)}


def read_block(message: Message, peer: str) -> Array:
    """Return the block of a ``block`` or ``echo``.

    Raises
    ------
    WireError
        The message has other tensors.
    """
    if set(message.tensors) != {"block"}:
        raise WireError(f"{peer}: expected the tensor 'block' in a '{message.kind}', got {sorted(message.tensors)[:4]}")
    return message.array("block")
