"""Checks that a message is the one whose turn it is."""

from __future__ import annotations

from typing import TypeVar

from ...core.control import Control
from ...core.errors import WireError
from ...core.message import Message

Expected = TypeVar("Expected", bound=Control)


def expect(message: Message, kind: type[Expected], peer: str, step: int, micro: int = 0) -> Expected:
    """Read a message of type ``kind`` that belongs to a step and a micro-batch.

    Raises
    ------
    WireError
        The message is of another type or invalid, or belongs elsewhere; the error names ``peer``.
    """
    header = kind.read(message, peer)
    require_position(message, peer, step, micro)
    return header


def require_position(message: Message, peer: str, step: int, micro: int) -> None:
    """Raise a :class:`WireError` that names ``peer`` unless a message belongs to a step and a micro-batch."""
    if (message.step, message.micro) != (step, micro):
        raise WireError(
            f"{peer}: expected '{message.kind}' {step}.{micro}, got '{message.kind}' {message.step}.{message.micro}"
        )
