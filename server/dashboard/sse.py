"""Server-sent events: a page's parts, sent again when they have changed, no faster than the browser takes them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

#: Seconds between two looks, between two signs of life, that one event may take to be taken, and of a stream's life.
_LOOK, _ALIVE, _TAKE, _LIFE = 1.0, 15.0, 20.0, 3600.0


class Streams:
    """Counts the streams that are open, and ends them.

    Parameters
    ----------
    most : int
        So many at a time.
    """

    def __init__(self, most: int = 32) -> None:
        self._most = most
        self._open = 0
        self._ending = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether no more may be opened."""
        return self._open >= self._most

    def end(self) -> None:
        """End all of them."""
        self._ending.set()

    async def pause(self, seconds: float) -> bool:
        """Wait; returns False as soon as streams have to end."""
        try:
            async with asyncio.timeout(seconds):
                await self._ending.wait()
        except TimeoutError:
            return True
        return False

    def __enter__(self) -> Streams:
        self._open += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._open -= 1


class Live:
    """One stream, as an answer.

    Nothing is queued: a look is taken when the last event has been taken, so a slow browser skips what it missed, and
    one that takes nothing for twenty seconds is dropped.

    Parameters
    ----------
    streams : Streams
    look : callable
        ``await look()`` gives the page's parts: name -> JSON-able. What has not changed since is not sent.
    """

    def __init__(self, streams: Streams, look: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._streams = streams
        self._look = look
        self._sent: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        if self._streams.full:
            await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"10")]})
            await send({"type": "http.response.body", "body": b"too many look at this dashboard now"})
            return
        with self._streams:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")],
                }
            )
            feeding = asyncio.create_task(self._feed(send))
            leaving = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait([feeding, leaving], return_when=asyncio.FIRST_COMPLETED)
            finally:
                feeding.cancel()
                leaving.cancel()
                await asyncio.gather(feeding, leaving, return_exceptions=True)

    async def _feed(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        began = quiet = loop.time()
        await _take(send, "retry: 2000\n\n")
        going = True
        while going and loop.time() - began < _LIFE:
            parts = {name: json.dumps(value) for name, value in (await self._look()).items()}
            fresh = {name: text for name, text in parts.items() if self._sent.get(name) != text}
            if fresh:
                self._sent |= fresh
                whole = ",".join(f"{json.dumps(name)}:{text}" for name, text in fresh.items())
                await _take(send, f"event: parts\ndata: {{{whole}}}\n\n")
                quiet = loop.time()
            elif loop.time() - quiet > _ALIVE:
                await _take(send, ": alive\n\n")
                quiet = loop.time()
            going = await self._streams.pause(_LOOK)
        await send({"type": "http.response.body", "body": b""})


async def _take(send: Send, text: str) -> None:
    async with asyncio.timeout(_TAKE):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
