"""A slow link on a fast one: bandwidth, latency and jitter of a link profile for a real node's connection.

A chunk starts when the one before it is through, takes bytes / bandwidth, and arrives one latency later. Latency
overlaps with the chunks behind, so it does not lower the throughput; jitter never reorders.
"""

from __future__ import annotations

import asyncio
from collections import deque

import numpy as np

from ..core.profiles import LinkProfile
from ..core.seeds import Seed
from .chunks import CHUNK_BYTES
from .pump import Read, Write

#: A chunk of a shaped link lasts about so long, so that the other end sees progress.
_CHUNK_SECONDS = 0.1
_SMALLEST_CHUNK = 1 << 14


class Pacer:
    """When chunks arrive at the far end of one direction of a link; computes only, on whatever clock it is given.

    Parameters
    ----------
    mbps : float
        Bandwidth in 10^6 bit/s; 0 = unlimited.
    latency, jitter : float
        Mean and standard deviation of the one-way latency, in seconds.
    rng : numpy.random.Generator
        Where jitter comes from.
    """

    def __init__(self, mbps: float, latency: float, jitter: float, rng: np.random.Generator) -> None:
        self._seconds_per_byte = 8e-6 / mbps if mbps else 0.0
        self._latency, self._jitter, self._rng = latency, jitter, rng
        self._last = 0.0
        self.free = 0.0  # when the link has put the last chunk through

    def schedule(self, now: float, nbytes: int) -> float:
        """Take a chunk of ``nbytes`` at ``now``; returns when it has arrived whole."""
        self.free = max(now, self.free) + nbytes * self._seconds_per_byte
        wobble = float(self._rng.normal(0.0, self._jitter)) if self._jitter else 0.0
        self._last = max(self._last, self.free + max(0.0, self._latency + wobble))
        return self._last


class Shaper:
    """Throttles connections to a link profile; the ``shape`` of a :class:`~farshore.wire.grpc_attach.Dialer`.

    One connection at a time: wrapping the next one forgets what was under way on the one before.

    Parameters
    ----------
    link : LinkProfile
        ``up`` is what the node writes, ``down`` what it reads.
    seed : Seed
        Each direction draws its jitter from a child of it.
    """

    def __init__(self, link: LinkProfile, seed: Seed) -> None:
        latency, jitter = link.latency_ms / 1e3, link.jitter_ms / 1e3
        self._up = Pacer(link.up_mbps, latency, jitter, seed.child("link", "up").numpy())
        self._down = Pacer(link.down_mbps, latency, jitter, seed.child("link", "down").numpy())
        self._uplink: _Uplink | None = None
        whole = int(link.up_mbps * 1e6 / 8 * _CHUNK_SECONDS) or CHUNK_BYTES
        self.chunk_bytes = min(CHUNK_BYTES, max(_SMALLEST_CHUNK, whole))

    def __call__(self, read: Read, write: Write) -> tuple[Read, Write]:
        """Wrap a connection's two ends; call it in the loop that uses them."""
        self._uplink = _Uplink(self._up, write)
        return _Downlink(self._down, read).read, self._uplink.write

    async def flush(self) -> None:
        """Wait until all that was written has arrived."""
        if self._uplink is not None:
            await self._uplink.flush()


class _Uplink:
    """Chunks on their way up. Its task lives while there are any."""

    def __init__(self, pacer: Pacer, write: Write) -> None:
        self._pacer, self._write = pacer, write
        self._line: deque[tuple[float, bytes]] = deque()
        self._task: asyncio.Task[None] | None = None

    async def write(self, chunk: bytes) -> None:
        """Return when the link is free for the next chunk."""
        loop = asyncio.get_running_loop()
        self._line.append((self._pacer.schedule(loop.time(), len(chunk)), chunk))
        if self._task is None or self._task.done():
            if self._task is not None:
                self._task.result()  # raises what the connection raised
            self._task = loop.create_task(self._deliver())
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())  # raised at the next write
        await asyncio.sleep(max(0.0, self._pacer.free - loop.time()))

    async def flush(self) -> None:
        if self._task is not None:
            await self._task

    async def _deliver(self) -> None:
        loop = asyncio.get_running_loop()
        while self._line:
            arrival, chunk = self._line.popleft()
            await asyncio.sleep(max(0.0, arrival - loop.time()))
            await self._write(chunk)


class _Downlink:
    """Chunks on their way down: a task reads ahead as far as the link's latency holds; it ends with the connection."""

    def __init__(self, pacer: Pacer, read: Read) -> None:
        self._pacer, self._read = pacer, read
        self._line: asyncio.Queue[tuple[float, bytes | BaseException | None]] = asyncio.Queue()
        self._task = asyncio.get_running_loop().create_task(self._fetch())

    async def read(self) -> bytes | None:
        arrival, chunk = await self._line.get()
        await asyncio.sleep(max(0.0, arrival - asyncio.get_running_loop().time()))
        if isinstance(chunk, BaseException):
            raise chunk
        return chunk

    async def _fetch(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            chunk: bytes | BaseException | None
            try:
                chunk = await self._read()
            except (Exception, asyncio.CancelledError) as error:
                chunk = error
            size = len(chunk) if isinstance(chunk, bytes) else 0
            self._line.put_nowait((self._pacer.schedule(loop.time(), size), chunk))
            if not isinstance(chunk, bytes):
                return
            await asyncio.sleep(max(0.0, self._pacer.free - loop.time()))
