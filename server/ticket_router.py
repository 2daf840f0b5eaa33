"""Which ticket leads to which conversation of a run process, and how often its connections may break the format."""

from __future__ import annotations

import logging

from ..core.errors import RefusedError, WireError
from ..wire.channel import Channel
from ..wire.pump import Read, Write, pump

_log = logging.getLogger(__name__)

#: Connections that may break the format one after another without a frame that came through.
_BREACHES = 3


class TicketRouter:
    """The conversations of one run process by ticket; lives in its I/O loop, but for :meth:`open`."""

    def __init__(self) -> None:
        self._channels: dict[str, Channel] = {}
        self._breaches: dict[str, tuple[int, int]] = {}

    def add(self, ticket: str, channel: Channel) -> None:
        """Let ``ticket`` lead to ``channel``; an earlier one of the same node leads nowhere from now on."""
        others = {t: c for t, c in self._channels.items() if c.node != channel.node}
        self._channels = {**others, ticket: channel}

    def node_of(self, ticket: str) -> str | None:
        """The node that a ticket is for."""
        channel = self._channels.get(ticket)
        return None if channel is None else channel.node

    async def serve(self, ticket: str, read: Read, write: Write) -> None:
        """Serve a connection until it ends.

        Raises
        ------
        RefusedError
            The ticket opens nothing here.
        WireError
            The node broke the format: this connection is over. After three in a row that brought no frame, so is the
            conversation, or a node with a broken network card would hold up its round for ever.
        """
        channel = self._channels.get(ticket)
        if channel is None:
            raise RefusedError("the ticket opens no node's connection of this run")
        try:
            await pump(channel, read, write)
        except WireError as error:
            received, count = self._breaches.get(ticket, (-1, 0))
            count = count + 1 if received == channel.received else 1
            self._breaches[ticket] = channel.received, count
            _log.warning("a connection of node %s was closed: %s", channel.node, error)
            if count >= _BREACHES:
                channel.close(0.0, f"{count} connections in a row broke the wire format: {error}")
            raise
