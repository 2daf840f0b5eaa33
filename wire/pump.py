"""Moves chunks between a channel and one connection, whatever kind it is, until either end is done with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from ..core.errors import WireError
from .channel import Attachment, Channel

logger = logging.getLogger(__name__)

#: A connection on which no byte arrives for so long is given up; signs of life are sent three times as often.
STALL_SECONDS = 30.0

_LAST_WRITE_SECONDS = 0.5

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
    heard = _Heard(loop.time())
    writer = loop.create_task(_writer(channel, attachment, write, work, stall_seconds / 3))
    others = [
        loop.create_task(_reader(attachment, read, heard)),
        loop.create_task(_watch(heard, stall_seconds)),
    ]
    try:
        done, _ = await asyncio.wait([writer, *others], return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        channel.detach(attachment)
        attachment.drop()
        # A write that is cancelled half way can hold up the end of its call.
        await asyncio.wait([writer], timeout=_LAST_WRITE_SECONDS)
        for task in (writer, *others):
            task.cancel()
        await asyncio.gather(writer, *others, return_exceptions=True)
    return attachment.greeted


@dataclass(slots=True)
class _Heard:
    """When something last arrived."""

    time: float


async def _watch(heard: _Heard, stall_seconds: float) -> None:
    """Return when nothing has arrived for too long."""
    loop = asyncio.get_running_loop()
    while (left := heard.time + stall_seconds - loop.time()) > 0:
        await asyncio.sleep(left)
    logger.warning("nothing arrived for %g s; the connection is given up", stall_seconds)


async def _reader(attachment: Attachment, read: Read, heard: _Heard) -> None:
    loop = asyncio.get_running_loop()
    while not attachment.dropped and not attachment.ended:
        chunk = await read()
        if chunk is None:
            return
        heard.time = loop.time()
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
