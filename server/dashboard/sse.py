"""Server-sent events that update the changed parts of a page, at the pace of the browser."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.types import Receive, Scope, Send

#: Seconds between updates, between keepalive comments, timeout of sending one event, and maximum life of a stream.
_INTERVAL, _KEEPALIVE, _SEND_TIMEOUT, _MAX_LIFETIME = 1.0, 15.0, 20.0, 3600.0


class Streams:
    """Counts and limits the open event streams, and ends them at shutdown.

    Parameters
    ----------
    limit : int
        Maximum number of open streams.
    """

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._open = 0
        self._ending = asyncio.Event()

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self._open >= self._limit

    def end(self) -> None:
        """End all streams."""
        self._ending.set()

    async def pause(self, seconds: float) -> bool:
        """Wait for ``seconds``; returns False as soon as streams are to end."""
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


class EventStream:
    """An ASGI response that streams the changed parts of a page as server-sent events.

    Nothing is queued: the parts are rendered after the previous event has been sent, so a slow browser skips
    intermediate states. A browser that accepts no data for 20 seconds is disconnected.

    Parameters
    ----------
    streams : Streams
    render : callable
        ``await render()`` returns the parts of the page: name -> JSON-serializable. Only changed parts are sent.
    """

    def __init__(self, streams: Streams, render: Callable[[], Awaitable[Mapping[str, Any]]]) -> None:
        self._streams = streams
        self._render = render
        self._sent: dict[str, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response until the browser disconnects or the streams end."""
        if self._streams.full:
            await send({"type": "http.response.start", "status": 503, "headers": [(b"retry-after", b"10")]})
            await send({"type": "http.response.body", "body": b"too many live pages are open"})
            return
        with self._streams:
            await send(
                {
                    "type": "http.response.start",
                    "status": 200,
                    "headers": [(b"content-type", b"text/event-stream; charset=utf-8"), (b"x-accel-buffering", b"no")],
                }
            )
            sending = asyncio.create_task(self._send_events(send))
            disconnect = asyncio.create_task(_disconnected(receive))
            try:
                await asyncio.wait([sending, disconnect], return_when=asyncio.FIRST_COMPLETED)
            finally:
                sending.cancel()
                disconnect.cancel()
                await asyncio.gather(sending, disconnect, return_exceptions=True)

    async def _send_events(self, send: Send) -> None:
        loop = asyncio.get_running_loop()
        started = last_sent = loop.time()
        await _send_text(send, "retry: 2000\n\n")
        running = True
        while running and loop.time() - started < _MAX_LIFETIME:
            parts = {name: json.dumps(value) for name, value in (await self._render()).items()}
            changed = {name: text for name, text in parts.items() if self._sent.get(name) != text}
            if changed:
                self._sent |= changed
                data = ",".join(f"{json.dumps(name)}:{text}" for name, text in changed.items())
                await _send_text(send, f"event: parts\ndata: {{{data}}}\n\n")
                last_sent = loop.time()
            elif loop.time() - last_sent > _KEEPALIVE:
                await _send_text(send, ": alive\n\n")
                last_sent = loop.time()
            running = await self._streams.pause(_INTERVAL)
        await send({"type": "http.response.body", "body": b""})


async def _send_text(send: Send, text: str) -> None:
    async with asyncio.timeout(_SEND_TIMEOUT):
        await send({"type": "http.response.body", "body": text.encode(), "more_body": True})


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
