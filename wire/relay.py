"""Relays chunks between a node's data connection and the run process, without decoding them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .local import check_not_refused, open_local
from .pump import Read, Write


async def relay(ticket: str, read: Read, write: Write, path: Path) -> None:
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

    Raises
    ------
    OSError
        The run process is not listening.
    RefusedError
        The run process rejected the ticket.
    """
    local_read, local_write, writer = await open_local(path, ticket)
    up = asyncio.create_task(_relay_up(read, local_write, writer))
    down = asyncio.create_task(_relay_down(local_read, write))
    try:
        # The run process ends the connection: it closes its side after reading everything from the node.
        await asyncio.wait([down])
        down.result()
    except ConnectionError:
        pass
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        writer.close()


async def _relay_up(read: Read, local_write: Write, writer: asyncio.StreamWriter) -> None:
    try:
        while (chunk := await read()) is not None:
            await local_write(chunk)
        writer.write_eof()
    except BaseException:
        writer.close()  # one side has ended; this ends the other direction too
        raise


async def _relay_down(local_read: Read, write: Write) -> None:
    if (chunk := await local_read()) is None:
        return
    check_not_refused(chunk)
    await write(chunk)
    while (chunk := await local_read()) is not None:
        await write(chunk)
