"""The messages of a run of a Flower app.

The server sends messages of the app, whose kind is the part of Flower's message type before the first dot (``train``,
``evaluate``, ``query``), and the node replies with the same kind. ``done`` ends the conversation; the node answers it
with ``goodbye``.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...core.control import Control


@dataclass(frozen=True, slots=True)
class AppMessage:
    """Fields of a message of the app.

    Attributes
    ----------
    message : bytes, optional
        Flower's protobuf message with empty arrays; if it is long, a tensor called ``message`` has it instead.
    """

    message: bytes | None = None


@dataclass(frozen=True, slots=True)
class Done(Control, what="done"):
    """The app has ended."""


@dataclass(frozen=True, slots=True)
class Goodbye(Control, what="goodbye"):
    """The node's last message: it has received ``done``."""
