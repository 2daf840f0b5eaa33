"""What arrived and waits for its program: a queue that blocks readers, and that several readers' waits can share."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from ..core.errors import PeerLostError, WireError
from ..core.message import Message

#: Numbers arrivals over all inboxes of the process.
_arrivals = itertools.count()


class Inbox:
    """Arrived frames in order.

    The bytes in it are bounded by the sender's window, not here: the sender counts a frame until this side's program
    took it.
    """

    def __init__(self) -> None:
        self._arrived: deque[tuple[int, bytes | memoryview, memoryview, int]] = deque()
        self._condition = threading.Condition()
        self._listeners: set[threading.Event] = set()
        self._error: Exception | None = None
        self.bytes = 0

    def put(self, header: bytes | memoryview, payload: memoryview, size: int) -> None:
        """Add a frame of ``size`` bytes and wake whoever waits."""
        with self._condition:
            self._arrived.append((next(_arrivals), header, payload, size))
            self.bytes += size
            self._wake()

    def fail(self, error: Exception) -> None:
        """Let every later take raise ``error`` once what has arrived is taken; the first error stays."""
        with self._condition:
            self._error = self._error or error
            self._wake()

    def __len__(self) -> int:
        return len(self._arrived)

    def _wake(self) -> None:
        self._condition.notify_all()
        for listener in self._listeners:
            listener.set()

    @property
    def error(self) -> Exception | None:
        """Why nothing more will come."""
        return self._error

    @property
    def ready(self) -> bool:
        """Whether a take would return, or raise, at once."""
        return bool(self._arrived) or self._error is not None

    @property
    def place(self) -> tuple[bool, int] | None:
        """Sorts inboxes by which to take from first: messages in order of arrival, then errors; None when empty."""
        with self._condition:
            if self._arrived:
                return False, self._arrived[0][0]
            return (True, 0) if self._error is not None else None

    def take(self, timeout: float | None) -> tuple[bytes | memoryview, memoryview, int]:
        """The next frame; blocks.

        Raises
        ------
        TimeoutError
            Nothing came in time.
        Exception
            What :meth:`fail` was given.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self.ready, timeout):
                raise TimeoutError("no message arrived in time")
            if self._arrived:
                _, header, payload, size = self._arrived.popleft()
                self.bytes -= size
                return header, payload, size
            assert self._error is not None
            raise self._error

    def listen(self, event: threading.Event) -> None:
        """Set ``event`` whenever something arrives, until :meth:`unlisten`."""
        with self._condition:
            self._listeners.add(event)
            if self.ready:
                event.set()

    def unlisten(self, event: threading.Event) -> None:
        """Undo :meth:`listen`."""
        with self._condition:
            self._listeners.discard(event)


class Receiver(Protocol):
    """A channel, as far as :func:`receive_any` needs it."""

    @property
    def inbox(self) -> Inbox: ...

    def receive(self, timeout: float | None = None) -> Message: ...


def receive_any(channels: Mapping[str, Receiver], timeout: float | None = None) -> tuple[str, Message]:
    """The message that arrived first on any of the channels, with the channel's name; blocks without polling.

    The error of a channel that has ended comes when no other has a message, with the channel's ``name``; leave that
    channel out to go on.

    Raises
    ------
    TimeoutError
        Nothing came in time.
    PeerLostError
        There are no channels, or one of them has failed.
    WireError
        A message breaks the format; the error has the channel's ``name`` too.
    """
    if not channels:
        raise PeerLostError("there is nobody left to receive from")
    deadline = None if timeout is None else time.monotonic() + timeout
    arrived = threading.Event()
    for channel in channels.values():
        channel.inbox.listen(arrived)
    try:
        while arrived.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            arrived.clear()
            ready = [(place, name) for name, c in channels.items() if (place := c.inbox.place) is not None]
            if ready:
                _, name = min(ready, key=lambda item: item[0])
                try:
                    return name, channels[name].receive(0.0)
                except (PeerLostError, WireError) as error:
                    error.name = name
                    raise
        raise TimeoutError("no message arrived in time")
    finally:
        for channel in channels.values():
            channel.inbox.unlisten(arrived)
