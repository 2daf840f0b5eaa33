"""Routes data connections to the channels of a run process by ticket; limits violations of the wire format."""

from __future__ import annotations

import logging

from ..core.errors import RefusedError, WireError
from ..wire.channel import Channel
from ..wire.pump import Read, Write, pump

_log = logging.getLogger(__name__)

#: Consecutive connections without a valid frame after which the channel is closed.
_MAX_VIOLATIONS = 3


class TicketRouter:
    """The channels of one run process by ticket; use from its I/O loop, except :meth:`add`."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        self._violations: dict[str, tuple[int, int]] = {}

    def add(self, ticket: str, channel: Channel) -> None:
        """Route ``ticket`` to ``channel``; earlier tickets of the same node become invalid. Thread-safe."""
        others = {t: c for t, c in self._channels.items() if c.node != channel.node}
        self._channels = {**others, ticket: channel}

    def remove(self, node: str) -> None:
        """Make the tickets of a node invalid. Thread-safe."""
        self._channels = {t: c for t, c in self._channels.items() if c.node != node}

    def node_of(self, ticket: str) -> str | None:
        """Return the node that ``ticket`` belongs to, or None."""
        channel = self._channels.get(ticket)
        return None if channel is None else channel.node

    async def serve(self, ticket: str, read: Read, write: Write) -> None:
        """Connect a data connection to its channel until it ends.

        Raises
        ------
        RefusedError
            The ticket is unknown.
        WireError
            The node violated the wire format, so the connection ends. After three such connections in a row without a
            valid frame, the channel is closed too, as the round would otherwise wait for the node forever.
        """
        channel = self._channels.get(ticket)
        if channel is None:
            raise RefusedError("the ticket does not belong to a node of this run")
        try:
            await pump(channel, read, write)
        except WireError as error:
            received, count = self._violations.get(ticket, (-1, 0))
            count = count + 1 if received == channel.received else 1
            self._violations[ticket] = channel.received, count
            _log.warning("a connection of node %s was closed: %s", channel.node, error)
            if count >= _MAX_VIOLATIONS:
                channel.close(0.0, f"{count} connections in a row violated the wire format: {error}")
            raise
