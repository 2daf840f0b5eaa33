"""The loop that moves chunks between a channel and one connection, until either side ends it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .channel import Channel
from .connection import Connection
from .frame import Buffer
from .slow_start import SlowStart

logger = logging.getLogger(__name__)

#: Seconds without an arriving byte after which a connection is closed; heartbeats are sent three times as often.
STALL_SECONDS = 30.0

#: Seconds for the peer to read everything after a goodbye and to end the connection.
_LINGER_SECONDS = 2.0
#: Seconds for a write in progress to complete when the connection ends.
_LAST_WRITE_SECONDS = 0.5

Read = Callable[[], Awaitable[Buffer | None]]
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
    """Serve ``channel`` over one connection until it ends.

    Parameters
    ----------
    read : callable
        Returns the next chunk, or None at the end of the connection.
    write : callable
        Returns when a chunk has been accepted, which propagates back-pressure.
    stall_seconds : float
        The connection is closed if no byte arrives for this long.
    finish : callable, optional
        Awaited after a goodbye to end the writing side; the peer then has 2 seconds to read the rest and to end the
        connection. For connections that discard data in transit when a read is cancelled.

    Returns
    -------
    bool
        Whether the two sides exchanged hello frames, that is, whether the connection ever worked.

    Raises
    ------
    WireError
        The peer violated the wire format.
    """
    loop = asyncio.get_running_loop()
    work = asyncio.Event()

    def wake() -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(work.set)

    connection = channel.attach(wake)
    work.set()
    last_arrival = _LastArrival(loop.time())
    writer = loop.create_task(_writer(channel, connection, write, work, stall_seconds / 3))
    reader = loop.create_task(_reader(connection, read, last_arrival))
    tasks = (writer, reader, loop.create_task(_wait_for_stall(last_arrival, stall_seconds)))
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
        if finish is not None and channel.stopped and writer in done and not connection.dropped:
            await finish()
            await asyncio.wait([reader], timeout=_LINGER_SECONDS)
            if reader.done():
                reader.result()
    finally:
        channel.detach(connection)
        connection.drop()
        await _end(writer, *tasks)
    return connection.greeted


async def _end(writer: asyncio.Task[None], *tasks: asyncio.Task[None]) -> None:
    try:
        # Cancelling a gRPC write in progress can delay the end of the call.
        await asyncio.wait([writer], timeout=_LAST_WRITE_SECONDS)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@dataclass(slots=True)
class _LastArrival:
    """Time of the last arrived chunk."""

    time: float


async def _wait_for_stall(last_arrival: _LastArrival, stall_seconds: float) -> None:
    """Return when no chunk has arrived for ``stall_seconds``."""
    loop = asyncio.get_running_loop()
    while (left := last_arrival.time + stall_seconds - loop.time()) > 0:
        await asyncio.sleep(left)
    logger.warning("no data arrived for %g s; closing the connection", stall_seconds)


async def _reader(connection: Connection, read: Read, last_arrival: _LastArrival) -> None:
    loop = asyncio.get_running_loop()
    while (chunk := await read()) is not None:
        last_arrival.time = loop.time()
        connection.feed(chunk)


async def _writer(
    channel: Channel, connection: Connection, write: Write, work: asyncio.Event, heartbeat_seconds: float
) -> None:
    slow_start = SlowStart(write)
    while not connection.ended:
        work.clear()
        stopped = channel.stopped  # read first: a goodbye queued during this pass is sent in the next
        for chunk in connection.outgoing():
            await slow_start.write(chunk)
        if connection.dropped or stopped:
            return
        try:
            await asyncio.wait_for(work.wait(), heartbeat_seconds)
        except TimeoutError:
            connection.heartbeat()


__all__ = ["STALL_SECONDS", "Finish", "Read", "Write", "pump"]
