"""Carries chunks between a node's stream and the run process that they are for, without looking into them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .local import check_welcome, open_local
from .pump import Read, Write


async def relay(ticket: str, read: Read, write: Write, path: Path) -> None:
    """Join a node's connection to the run process that listens at ``path``, until either ends.

    A chunk is read only after the one before it was accepted by the other side, so a slow run process slows its node
    down and nothing piles up here.

    Raises
    ------
    OSError
        The run process does not listen (any longer).
    RefusedError
        It does not know the ticket.
    """
    inner_read, inner_write, writer = await open_local(path, ticket)
    up = asyncio.create_task(_carry_up(read, inner_write, writer))
    down = asyncio.create_task(_carry_down(inner_read, write))
    try:
        # The run process has the last word: it closes its side once it has read all that its node sent.
        await asyncio.wait([down])
        down.result()
    except ConnectionError:
        pass
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)
        writer.close()


async def _carry_up(read: Read, inner_write: Write, writer: asyncio.StreamWriter) -> None:
    try:
        while (chunk := await read()) is not None:
            await inner_write(chunk)
        writer.write_eof()
    except BaseException:
        writer.close()  # the node is gone, or the run process: the way down ends too
        raise


async def _carry_down(inner_read: Read, write: Write) -> None:
    if (chunk := await inner_read()) is None:
        return
    check_welcome(chunk)
    await write(chunk)
    while (chunk := await inner_read()) is not None:
        await write(chunk)
