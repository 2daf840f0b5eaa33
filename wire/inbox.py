"""Queue of frames that have arrived and wait for the program; supports waiting on several queues at once."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from ..core.errors import PeerLostError, WireError
from ..core.message import Message
from .pack import Header

#: Numbers arrivals over all inboxes of the process.
_arrivals = itertools.count()


@dataclass(frozen=True, slots=True)
class Arrived:
    """A data frame that no program has taken yet.

    Attributes
    ----------
    order : int
        Position among the arrivals of all inboxes of this process.
    sequence : int
        The frame's number.
    header : Header or WireError
        The parsed header, or what is wrong with it: the program gets the error when it takes the frame.
    payload : memoryview
    size : int
        Bytes of the frame.
    before : int
        Bytes of all frames that arrived before it.
    """

    order: int
    sequence: int
    header: Header | WireError
    payload: memoryview
    size: int
    before: int

    @property
    def key(self) -> str:
        """Key of a published message, empty for all others."""
        return "" if isinstance(self.header, WireError) else self.header.key


class Inbox:
    """Arrived frames in order; of published messages with the same key, only the newest.

    The sender's window bounds its bytes: the sender counts a frame until it is taken here. Thread-safe.
    """

    def __init__(self) -> None:
        self._arrived: deque[Arrived] = deque()
        self._condition = threading.Condition()
        self._listeners: set[threading.Event] = set()
        self._error: Exception | None = None
        self._last = 0
        self._arrived_bytes = 0
        self.bytes = 0

    def put(self, sequence: int, header: Header | WireError, payload: memoryview, size: int) -> bool:
        """Add a data frame and wake waiting readers.

        Returns
        -------
        bool
            Whether the frame superseded one that had not been taken.
        """
        with self._condition:
            frame = Arrived(next(_arrivals), sequence, header, payload, size, self._arrived_bytes)
            superseded = bool(frame.key) and self._remove(frame.key)
            self._arrived.append(frame)
            self.bytes += size
            self._arrived_bytes += size
            self._last = sequence
            self._wake()
        return superseded

    def skip(self, sequence: int, size: int) -> None:
        """Note a frame that was superseded before it was sent."""
        with self._condition:
            self._arrived_bytes += size
            self._last = sequence

    def _remove(self, key: str) -> bool:
        for frame in self._arrived:
            if frame.key == key:
                self._arrived.remove(frame)
                self.bytes -= frame.size
                return True
        return False

    def fail(self, error: Exception) -> None:
        """Make every take raise ``error`` once all frames are taken; the first error stays."""
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
        """The error that ended this inbox, or None."""
        return self._error

    @property
    def ready(self) -> bool:
        """Whether a take would return, or raise, at once."""
        return bool(self._arrived) or self._error is not None

    @property
    def place(self) -> tuple[bool, int] | None:
        """Sort key for taking from several inboxes: messages in order of arrival, then errors; None when empty."""
        with self._condition:
            if self._arrived:
                return False, self._arrived[0].order
            return (True, 0) if self._error is not None else None

    def taken(self) -> tuple[int, int]:
        """Number of the last frame up to which all are taken or superseded, and the bytes of these frames."""
        with self._condition:
            if self._arrived:
                return self._arrived[0].sequence - 1, self._arrived[0].before
            return self._last, self._arrived_bytes

    def take(self, timeout: float | None) -> Arrived:
        """The next frame; blocks.

        Raises
        ------
        TimeoutError
            Nothing came in time.
        Exception
            The argument of :meth:`fail`.
        """
        with self._condition:
            if not self._condition.wait_for(lambda: self.ready, timeout):
                raise TimeoutError("no message arrived in time")
            if self._arrived:
                frame = self._arrived.popleft()
                self.bytes -= frame.size
                return frame
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


class Signal:
    """Wakes a waiting :func:`receive_any`; stays raised until it is cleared. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: set[threading.Event] = set()
        self.raised = False

    def set(self) -> None:
        """Raise it."""
        with self._lock:
            self.raised = True
            for listener in self._listeners:
                listener.set()

    def clear(self) -> None:
        """Lower it."""
        with self._lock:
            self.raised = False

    def listen(self, event: threading.Event) -> None:
        """Set ``event`` when it is raised, until :meth:`unlisten`."""
        with self._lock:
            self._listeners.add(event)
            if self.raised:
                event.set()

    def unlisten(self, event: threading.Event) -> None:
        """Undo :meth:`listen`."""
        with self._lock:
            self._listeners.discard(event)


class Source(Protocol):
    """What a waiting reader listens to."""

    def listen(self, event: threading.Event) -> None: ...

    def unlisten(self, event: threading.Event) -> None: ...


class Receiver(Protocol):
    """A channel, as far as :func:`receive_any` needs it."""

    @property
    def inbox(self) -> Inbox: ...

    def receive(self, timeout: float | None = None) -> Message: ...


def receive_any(channels: Mapping[str, Receiver], timeout: float | None = None) -> tuple[str, Message]:
    """The message that arrived first on any of the channels, with the channel's name; blocks without polling.

    The error of a channel that has ended is raised when no other channel has a message; it has the channel's ``name``.
    Leave that channel out to go on.

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
        raise PeerLostError("there is no channel to receive from")
    received = receive_unless(channels, Signal(), timeout)
    assert received is not None
    return received


def receive_unless(
    channels: Mapping[str, Receiver], signal: Signal, timeout: float | None = None
) -> tuple[str, Message] | None:
    """As :func:`receive_any`, for any number of channels; returns None as soon as ``signal`` is raised."""
    deadline = None if timeout is None else time.monotonic() + timeout
    arrived = threading.Event()
    sources: list[Source] = [signal, *(channel.inbox for channel in channels.values())]
    for source in sources:
        source.listen(arrived)
    try:
        while arrived.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            arrived.clear()
            if signal.raised:
                return None
            ready = [(place, name) for name, c in channels.items() if (place := c.inbox.place) is not None]
            if ready:
                _, name = min(ready, key=lambda item: item[0])
                try:
                    return name, channels[name].receive(0.0)
                except (PeerLostError, WireError) as error:
                    error.name = name
                    raise
                except TimeoutError:  # what arrived was not for the program
                    arrived.set()
        raise TimeoutError("no message arrived in time")
    finally:
        for source in sources:
            source.unlisten(arrived)
