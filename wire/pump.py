"""Moves chunks between a channel and one connection, whatever kind it is, until either end is done with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .channel import Channel
from .connection import Connection
from .slow_start import SlowStart

logger = logging.getLogger(__name__)

#: A connection on which no byte arrives for so long is given up; signs of life are sent three times as often.
STALL_SECONDS = 30.0

#: Seconds that the peer gets to read what was written before a goodbye, and to end the connection.
_LAST_SECONDS = 2.0
_LAST_WRITE_SECONDS = 0.5

Read = Callable[[], Awaitable[bytes | None]]
Write = Callable[[bytes], Awaitable[None]]
Finish = Callable[[], Awaitable[None]]


async def pump(
    channel: Channel,
    read: Read,
    write: Write,
    *,
    stall_seconds: float = STALL_SECONDS,
    finish: Finish | None = None,
) -> bool:
    """Serve ``channel`` over one connection.

    Parameters
    ----------
    read : callable
        Awaits the next chunk; None at the end of the connection.
    write : callable
        Awaits until a chunk is accepted; this is where back-pressure comes from.
    stall_seconds : float
        Liveness is progress: the connection fails when nothing arrives for so long.
    finish : callable, optional
        Awaited after a goodbye, to tell that nothing more is written; the peer then gets a moment to read it all and
        to end the connection. For connections that lose what is on its way when their reading end is cancelled.

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

    connection = channel.attach(wake)
    work.set()
    heard = _Heard(loop.time())
    writer = loop.create_task(_writer(channel, connection, write, work, stall_seconds / 3))
    reader = loop.create_task(_reader(connection, read, heard))
    tasks = (writer, reader, loop.create_task(_watch(heard, stall_seconds)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if finish is not None and channel.stopped and writer in done and not connection.dropped:
            await finish()
            await asyncio.wait([reader], timeout=_LAST_SECONDS)
            if reader.done():
                reader.result()
    finally:
        channel.detach(connection)
        connection.drop()
        await _end(writer, *tasks)
    return connection.greeted


async def _end(writer: asyncio.Task[None], *tasks: asyncio.Task[None]) -> None:
    try:
        # A write that is cancelled half way can hold up the end of its call.
        await asyncio.wait([writer], timeout=_LAST_WRITE_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


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


async def _reader(connection: Connection, read: Read, heard: _Heard) -> None:
    loop = asyncio.get_running_loop()
    while (chunk := await read()) is not None:
        heard.time = loop.time()
        connection.feed(chunk)


async def _writer(
    channel: Channel, connection: Connection, write: Write, work: asyncio.Event, beat_seconds: float
) -> None:
    paced = SlowStart(write)
    while not connection.ended:
        work.clear()
        stopped = channel.stopped  # looked at first: a goodbye queued during this round leaves with the next
        for chunk in connection.outgoing():
            await paced.write(chunk)
        if connection.dropped or stopped:
            return
        try:
            await asyncio.wait_for(work.wait(), beat_seconds)
        except TimeoutError:
            connection.heartbeat()


__all__ = ["STALL_SECONDS", "Finish", "Read", "Write", "pump"]
