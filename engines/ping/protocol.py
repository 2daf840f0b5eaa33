"""The messages of a ping run.

In each round the server sends an empty ``ping``, which the node returns, and a ``block``, which it returns as ``echo``.
The message's ``round`` is that of the run; the block is the tensor ``block`` (bytes).
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.control import describe, fields_of, read_fields
from ...core.errors import WireError
from ...core.message import Array, Message, Tensor


@dataclass(frozen=True, slots=True)
class Echo:
    """Fields of an ``echo``.

    Attributes
    ----------
    digest : bytes
        Digest of all blocks that the node has received.
    """

    digest: bytes


@dataclass(frozen=True, slots=True)
class Empty:
    """The fields of ``ping`` and ``block``: none."""


def ping(round_index: int) -> Message:
    """Return a ``ping``."""
    return Message("ping", round=round_index)


def block(round_index: int, data: Array) -> Message:
    """Return a ``block``."""
    return Message("block", round=round_index, tensors={"block": Tensor(data)})


def echo(round_index: int, data: Array, digest: bytes) -> Message:
    """Return an ``echo``."""
    return Message("echo", round=round_index, tensors={"block": Tensor(data)}, fields=fields_of(Echo(digest)))


def read_ping(message: Message, round_index: int, peer: str) -> None:
    """Check a ``ping``; errors as :func:`read_echo`."""
    _check(message, "ping", round_index, peer)
    read_fields(Empty, message, peer)


def read_block(message: Message, round_index: int, peer: str) -> Array:
    """Return the block of a ``block``; errors as :func:`read_echo`."""
    _check(message, "block", round_index, peer)
    read_fields(Empty, message, peer)
    return _block(message, peer)


def read_echo(message: Message, round_index: int, peer: str) -> tuple[Array, bytes]:
    """Return block and digest of an ``echo``.

    Raises
    ------
    WireError
        ``peer`` sent another message, one of another round, or one with other fields.
    """
    _check(message, "echo", round_index, peer)
    return _block(message, peer), read_fields(Echo, message, peer).digest


def _check(message: Message, kind: str, round_index: int, peer: str) -> None:
    if (message.kind, message.round) != (kind, round_index):
        got = f"{describe(message)} of round {message.round}"
        raise WireError(f"{peer}: expected '{kind}' of round {round_index}, got {got}")


def _block(message: Message, peer: str) -> Array:
    if set(message.tensors) != {"block"}:
        raise WireError(f"{peer}: expected the tensor 'block' in a '{message.kind}', got {sorted(message.tensors)[:4]}")
    return message.array("block")
