"""Moves chunks between a channel and one connection, whatever kind it is, until either end is done with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from ..core.errors import WireError
from .channel import Attachment, Channel

logger = logging.getLogger(__name__)

#: A connection on which no byte arrives for so long is given up; signs of life are sent three times as often.
STALL_SECONDS = 30.0

Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]


async def pump(channel: Channel, read: Read, write: Write, *, stall_seconds: float = STALL_SECONDS) -> bool:
    """Serve ``channel`` over one connection.

    Parameters
    ----------
    read : callable
        Awaits the next chunk; None at the end of the connection.
    write : callable
        Awaits until a chunk is accepted; this is where back-pressure comes from.
    stall_seconds : float
        Liveness is progress: the connection fails when nothing arrives for so long.

    Returns
    -------
    bool
        Whether the two ends had greeted each other, that is, whether this connection ever worked.

    Raises
    ------
    WireError
        The peer broke the format.
    """
    loop = asyncio.get_running_loop()
    work = asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(work.set)

    attachment = channel.attach(wake)
    work.set()
    tasks = [
        loop.create_task(_reader(attachment, read, stall_seconds)),
        loop.create_task(_writer(channel, attachment, write, work, stall_seconds / 3)),
    ]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        channel.detach(attachment)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return attachment.greeted


async def _reader(attachment: Attachment, read: Read, stall_seconds: float) -> None:
    while not attachment.dropped and not attachment.ended:
        try:
            chunk = await asyncio.wait_for(read(), stall_seconds)
        except TimeoutError:
            logger.warning("nothing arrived for %.0f s; the connection is given up", stall_seconds)
            return
        if chunk is None:
            return
        attachment.feed(chunk)


async def _writer(
    channel: Channel, attachment: Attachment, write: Write, work: asyncio.Event, beat_seconds: float
) -> None:
    while not attachment.ended:
        work.clear()
        for chunk in attachment.outgoing():
            await write(chunk)
        if attachment.dropped or channel.stopped:
            return
        try:
            await asyncio.wait_for(work.wait(), beat_seconds)
        except TimeoutError:
            attachment.heartbeat()


__all__ = ["STALL_SECONDS", "Read", "WireError", "Write", "pump"]
