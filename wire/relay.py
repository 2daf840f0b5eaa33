"""Relays chunks between a node's data connection and the run process, without decoding them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .local import LocalConnection, check_not_refused, open_local
from .pump import Read, Write

#: Seconds for a write in progress when a connection is ended.
_LAST_WRITE_SECONDS = 2.0


async def relay(ticket: str, read: Read, write: Write, path: Path, ended: asyncio.Event | None = None) -> None:
    """Relay a node's connection to the run process that listens at ``path``, until either side ends.

    A chunk is read only after the other side has accepted the previous one. This propagates back-pressure and keeps the
    memory use constant.

    Parameters
    ----------
    ticket : str
        Passed on to the run process.
    read, write : callable
        The node's connection.
    path : Path
        Unix socket of the run process.
    ended : asyncio.Event, optional
        Ends the connection when set.

    Raises
    ------
    OSError
        The run process is not listening.
    RefusedError
        The run process rejected the ticket.
    """
    local = await open_local(path, ticket)
    up = asyncio.create_task(_relay_up(read, local))
    down = asyncio.create_task(_relay_down(local, write))
    ending = asyncio.create_task((ended or asyncio.Event()).wait())
    try:
        # The run process ends the connection: it closes its side after reading everything from the node.
        await asyncio.wait([down, ending], return_when=asyncio.FIRST_COMPLETED)
        if not down.done():
            # Not cancelled: gRPC cannot end a call whose write was cancelled.
            local.end()
            await asyncio.wait([down], timeout=_LAST_WRITE_SECONDS)
        if down.done():
            down.result()
    except ConnectionError:
        pass
    finally:
        for task in (up, down, ending):
            task.cancel()
        await asyncio.gather(up, down, ending, return_exceptions=True)
        local.close()


async def _relay_up(read: Read, local: LocalConnection) -> None:
    try:
        while (chunk := await read()) is not None:
            await local.write(chunk)
        local.end_writing()
    except BaseException:
        local.end()  # one side has ended; this ends the other direction too
        raise


async def _relay_down(local: LocalConnection, write: Write) -> None:
    if (chunk := await local.read()) is None:
        return
    check_not_refused(chunk)
    while chunk is not None:
        await write(bytes(chunk))  # gRPC sends nothing else
        chunk = await local.read()
