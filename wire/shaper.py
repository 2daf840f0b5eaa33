"""Emulates a slow link on a real connection: bandwidth, latency and jitter of a link profile.

The transmission of a chunk starts when the previous one is complete, takes bytes / bandwidth, and the chunk arrives one
latency later. Latencies of consecutive chunks overlap, so that latency does not reduce the throughput. Jitter does not
reorder chunks.
"""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np

from ..core.profiles import LinkProfile
from ..core.seeds import Seed
from .chunks import CHUNK_BYTES
from .frame import Buffer
from .pump import Read, Write

#: Target transmission time of a chunk, short enough for the receiver to observe progress.
_CHUNK_SECONDS = 0.1
_MIN_CHUNK_BYTES = 1 << 14


class Pacer:
    """Computes when chunks arrive, for one direction of a link; independent of the clock.

    Parameters
    ----------
    mbps : float
        Bandwidth in 10^6 bit/s; 0 = unlimited.
    latency, jitter : float
        Mean and standard deviation of the one-way latency, in seconds.
    rng : numpy.random.Generator
        Source of the jitter.
    """

    def __init__(self, mbps: float, latency: float, jitter: float, rng: np.random.Generator) -> None:
        self._seconds_per_byte = 8e-6 / mbps if mbps else 0.0
        self._latency, self._jitter, self._rng = latency, jitter, rng
        self._last = 0.0
        self.free = 0.0  # time at which the transmission of the last chunk ends

    def schedule(self, now: float, nbytes: int) -> float:
        """Schedule a chunk of ``nbytes`` at time ``now`` and return its arrival time.

        All times are in seconds, of the same clock.
        """
        self.free = max(now, self.free) + nbytes * self._seconds_per_byte
        jitter = float(self._rng.normal(0.0, self._jitter)) if self._jitter else 0.0
        self._last = max(self._last, self.free + max(0.0, self._latency + jitter))
        return self._last


class Shaper:
    """Throttles connections to a link profile; the ``shaper`` of a :class:`~farshore.wire.grpc_attach.Dialer`.

    It serves one connection at a time: wrapping the next one discards chunks in transit on the previous one.

    Parameters
    ----------
    link : LinkProfile
        ``up`` applies to writes of the node, ``down`` to its reads.
    seed : Seed
        The jitter of each direction is drawn from a child of this seed.
    """

    def __init__(self, link: LinkProfile, seed: Seed) -> None:
        latency, jitter = link.latency_ms / 1e3, link.jitter_ms / 1e3
        self._up = Pacer(link.up_mbps, latency, jitter, seed.child("link", "up").numpy())
        self._down = Pacer(link.down_mbps, latency, jitter, seed.child("link", "down").numpy())
        self._uplink: _Uplink | None = None
        chunk_bytes = int(link.up_mbps * 1e6 / 8 * _CHUNK_SECONDS) or CHUNK_BYTES
        self.chunk_bytes = min(CHUNK_BYTES, max(_MIN_CHUNK_BYTES, chunk_bytes))

    def __call__(self, read: Read, write: Write) -> tuple[Read, Write]:
        """Wrap the ``read`` and ``write`` functions of a connection; call it in the loop that uses them."""
        self._uplink = _Uplink(self._up, write)
        return _Downlink(self._down, read).read, self._uplink.write

    async def flush(self) -> None:
        """Wait until all written chunks have been passed to the connection."""
        if self._uplink is not None:
            await self._uplink.flush()


class _Uplink:
    """Queue of chunks in transit from the node. A task delivers them; it ends when the queue is empty."""

    def __init__(self, pacer: Pacer, write: Write) -> None:
        self._pacer, self._write = pacer, write
        self._in_transit: deque[tuple[float, bytes]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def write(self, chunk: bytes) -> None:
        """Queue a chunk; return when its transmission is complete."""
        loop = asyncio.get_running_loop()
        self._in_transit.append((self._pacer.schedule(loop.time(), len(chunk)), chunk))
        if self._task is None or self._task.done():
            if self._task is not None:
                self._task.result()  # raises the error of the connection
            self._task = loop.create_task(self._deliver())
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # raised by the next write
        await asyncio.sleep(max(0.0, self._pacer.free - loop.time()))

    async def flush(self) -> None:
        if self._task is not None:
            await self._task

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while self._in_transit:
            arrival, chunk = self._in_transit.popleft()
            await asyncio.sleep(max(0.0, arrival - loop.time()))
            await self._write(chunk)


class _Downlink:
    """Queue of chunks in transit to the node. A task reads ahead, by the bandwidth and latency of the link."""

    def __init__(self, pacer: Pacer, read: Read) -> None:
        self._pacer, self._read = pacer, read
        self._in_transit: asyncio.Queue[tuple[float, Buffer | BaseException | None]] = asyncio.Queue()
        self._task = asyncio.get_running_loop().create_task(self._fetch())

    async def read(self) -> Buffer | None:
        arrival, chunk = await self._in_transit.get()
        await asyncio.sleep(max(0.0, arrival - asyncio.get_running_loop().time()))
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    async def _fetch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            chunk: Buffer | BaseException | None
            try:
                chunk = await self._read()
            except (Exception, asyncio.CancelledError) as error:
                chunk = error
            size = len(chunk) if isinstance(chunk, Buffer) else 0
            self._in_transit.put_nowait((self._pacer.schedule(loop.time(), size), chunk))
            if not isinstance(chunk, Buffer):
                return
            await asyncio.sleep(max(0.0, self._pacer.free - loop.time()))
