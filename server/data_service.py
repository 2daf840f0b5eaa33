"""The data connections of nodes: the ticket says where each one leads, and nothing in it is decoded here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import RefusedError, WireError
from ..wire.grpc_attach import attach_handler
from ..wire.pump import Read, Write
from ..wire.relay import relay


@dataclass(frozen=True, slots=True)
class Route:
    """Where a ticket leads: to the socket of the process of a run, as one of its nodes."""

    run_id: str
    node: str
    socket: Path


def data_handler(doors: Mapping[str, Route], dialled: Callable[[Route, str], None]) -> Any:
    """The data service: relays whoever has a ticket in ``doors``, which may change all the time.

    ``dialled(door, peer)`` is told before.
    """

    async def serve(ticket: str, read: Read, write: Write) -> None:
        door = doors.get(ticket)
        if door is None:
            raise RefusedError("the ticket opens no run here")
        try:
            await relay(ticket, read, write, door.socket)
        except OSError as error:
            raise WireError(f"run {door.run_id} does not take the connection of {door.node}: {error}") from error

    def known(ticket: str, peer: str) -> None:
        if (door := doors.get(ticket)) is not None:
            dialled(door, peer)

    return attach_handler(serve, known)
