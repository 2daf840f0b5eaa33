"""Limits connections to the dashboard that send no request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds until a connection must have sent its first complete request head, and most connections that have not.
_SECONDS, _MAX_IDLE = 10.0, 48


def idle_limiting_protocol() -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with these limits; beyond the number, the oldest idle connection is closed."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    idle: dict[Any, asyncio.TimerHandle] = {}

    class IdleLimitingProtocol(H11Protocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            idle[self] = self.loop.call_later(_SECONDS, self._close_idle)
            if len(idle) > _MAX_IDLE:
                next(iter(idle))._close_idle()

        def handle_events(self) -> None:
            super().handle_events()
            if self.cycle is not None:  # a request has begun
                self._not_idle()

        def connection_lost(self, exc: Exception | None) -> None:
            self._not_idle()
            super().connection_lost(exc)

        def _not_idle(self) -> None:
            if (timer := idle.pop(self, None)) is not None:
                timer.cancel()

        def _close_idle(self) -> None:
            self._not_idle()
            self.transport.abort()

    return IdleLimitingProtocol
