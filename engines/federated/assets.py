"""Assets that every client needs before its first round, offered by manifest and sent only if missing.

The server sends a short manifest; the client replies that it has the asset (or can generate it), or that it wants it.
The cost per client does not depend on the number of clients, and a client that is never drawn costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from ...core.message import Message, Scalar
from ...core.transfer import Direction
from .messages import UpdateError


class Assets(Protocol):
    """An asset of a run; the server and node programs each create their own instance."""

    @property
    def ships(self) -> bool:
        """Whether a new client must be sent the payload."""

    def manifest(self) -> dict[str, Scalar]:
        """Return the fields that identify the asset and describe how to generate it."""

    def payload(self, round_index: int) -> Message:
        """Return the asset itself, for a client that lacks it in round ``round_index``."""

    def planned_messages(self) -> Sequence[tuple[Direction, Message]]:
        """Return the exchange with one new client, with messages of their final sizes; generates nothing."""

    def has(self, manifest: dict[str, Scalar]) -> bool:
        """Return whether this client now holds the asset that the server's manifest describes."""

    def accept(self, payload: Message) -> None:
        """Store the payload on a client.

        Raises
        ------
        DataError
            The payload does not match the manifest.
        """

    def save(self) -> Path:
        """Write the asset to a file on the server's machine, for its worker processes."""

    def load(self, path: Path) -> None:
        """Map the file of :meth:`save` in a worker process; all workers share the memory."""


def offer_message(assets: Assets, round_index: int) -> Message:
    """Create the server's offer to a new client in round ``round_index``."""
    return Message("control", round=round_index, fields={"what": "offer", **assets.manifest()})


def offer_reply(round_index: int, *, has: bool) -> Message:
    """Create a client's reply to an offer."""
    return Message("control", round=round_index, fields={"what": "have" if has else "want"})


def is_missing(reply: Message) -> bool:
    """Return whether a client's reply to an offer asks for the payload.

    Raises
    ------
    UpdateError
        The message is not a reply to an offer.
    """
    what = reply.fields.get("what")
    if reply.kind != "control" or what not in ("have", "want"):
        raise UpdateError(f"expected 'have' or 'want' in reply to an offer, got a '{reply.kind}' message")
    return what == "want"
