"""Carries chunks between a node's stream and the run process that they are for, without looking into them."""

from __future__ import annotations

import asyncio
from pathlib import Path

from .local import open_local
from .pump import Read, Write


async def relay(ticket: str, read: Read, write: Write, path: Path) -> None:
    """Join a node's connection to the run process that listens at ``path``, until either ends.

    A chunk is read only after the one before it was accepted by the other side, so a slow run process slows its node
    down and nothing piles up here.

    Raises
    ------
    OSError
        The run process does not listen (any longer).
    """
    inner_read, inner_write, writer = await open_local(path, ticket)

    async def carry(source: Read, sink: Write) -> None:
        while (chunk := await source()) is not None:
            await sink(chunk)

    tasks = [asyncio.create_task(carry(read, inner_write)), asyncio.create_task(carry(inner_read, write))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            if not isinstance(task.exception(), ConnectionError):
                task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()
