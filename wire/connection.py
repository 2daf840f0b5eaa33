"""One connection of a channel: turns arrived chunks into frames, and frames that wait into chunks to send."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..core.errors import WireError
from .chunks import Assembler
from .frame import NUMBERED, Buffer, FrameType, Prefix
from .outbox import Outgoing

if TYPE_CHECKING:
    from .connection_side import ConnectionSide


class Connection:
    """One connection of a channel, as I/O threads see it.

    Only :meth:`wake` and the requests (:meth:`acknowledge`, :meth:`heartbeat`, :meth:`ask`, :meth:`say_goodbye`,
    :meth:`drop`) may be called from any thread.
    """

    def __init__(self, channel: ConnectionSide, wake: Callable[[], None]) -> None:
        self._channel = channel
        self._wake = wake
        self._assembler = Assembler(lambda: channel.arriving_limits)
        self._own: deque[FrameType] = deque([FrameType.HELLO])
        self._idle = True  # the I/O thread has not been woken since it last looked for work
        self._cursor: int | None = None  # number of the next frame to send; unknown until the peer's hello
        self._question = False
        self._goodbye = False
        self._held = False  # a published frame waits for room in the window
        self._peer_asks = False
        self._asking = threading.Lock()  # guards _peer_asks
        self.greeted = False
        self.dropped = False
        self.ended = False

    def wake(self) -> None:
        """Make the I/O thread look for work."""
        # Once is enough until it looks: waking a loop takes a system call.
        if self._idle:
            self._idle = False
            self._wake()

    def drop(self) -> None:
        """End this connection; the channel goes on without it."""
        self.dropped = True
        self.wake()

    def should_acknowledge(self, unacknowledged: int) -> bool:
        """Whether so many bytes taken by the program deserve an acknowledgement of their own."""
        with self._asking:
            if self._peer_asks and not self._channel.inbox.bytes:
                self._peer_asks = False
                return True
        return unacknowledged >= self._channel.window_bytes // 4

    def acknowledge(self) -> None:
        """Send an acknowledgement on its own."""
        self._own.append(FrameType.ACK)
        self.wake()

    def heartbeat(self) -> None:
        """Send a sign of life; it carries the acknowledgement too."""
        self._own.append(FrameType.HEARTBEAT)
        self.wake()

    def ask(self) -> None:
        """Send a heartbeat after all waiting frames: it asks for an acknowledgement, so it must not overtake them."""
        self._question = True
        self.wake()

    def say_goodbye(self) -> None:
        """Tell the peer that nothing more comes, after all that was sent."""
        self._goodbye = True
        self.wake()

    # ---- sending -------------------------------------------------------------------------------------------------

    def outgoing(self) -> Iterator[bytes]:
        """Chunks that can leave now; returns when there are none left. The connection may stop in between."""
        self._idle = True
        rest: Iterator[bytes] = iter(())  # of the frame in progress
        while not self.dropped:
            if (chunk := next(rest, None)) is not None:
                yield chunk
            elif self._own:
                yield self._channel.own_frame(self._own.popleft())
            elif (frame := self._next_frame()) is not None:
                rest = iter(frame.chunks)
            elif self._question and self.greeted:
                self._question = False
                yield self._channel.own_frame(FrameType.HEARTBEAT)
            elif self._goodbye:
                self._goodbye = False
                yield self._channel.own_frame(FrameType.BYE)
            else:
                return

    def _next_frame(self) -> Outgoing | None:
        if self._cursor is None:
            return None
        frame, held = self._channel.next_frame(self._cursor)
        if held and not self._held:
            self._question = True  # without it the peer acknowledges a quarter of a window later
        self._held = held
        if frame is not None:
            self._cursor = frame.sequence + 1
        return frame

    # ---- receiving -----------------------------------------------------------------------------------------------

    def feed(self, chunk: Buffer) -> None:
        """Process an arrived chunk.

        Raises
        ------
        WireError
            The peer breaks the format or the window; the connection must be closed.
        """
        for prefix, body in self._assembler.feed(chunk):
            if self.dropped or self.ended:
                return
            self._arrived(prefix, body)

    def _arrived(self, prefix: Prefix, body: memoryview) -> None:
        channel = self._channel
        if prefix.epoch != channel.epoch:
            if channel.other_epoch(prefix.epoch):
                self.drop()
            return
        if prefix.type is FrameType.HELLO:
            self._greet(prefix.acknowledged)
        elif not self.greeted:
            raise WireError(f"{channel.peer} sent a frame before its hello")
        else:
            channel.acknowledged(prefix.acknowledged)
            if self._held:
                self.wake()
        if prefix.type in NUMBERED:
            if channel.arrived(prefix, body) and self.should_acknowledge(channel.unacknowledged):
                self.acknowledge()
            return
        channel.count(prefix)
        if prefix.type is FrameType.HEARTBEAT:
            self._answer_heartbeat()
        elif prefix.type is FrameType.BYE:
            self.ended = True
            channel.peer_closed(bytes(body).decode(errors="replace"))
            self.wake()

    def _greet(self, received: int) -> None:
        channel = self._channel
        cursor = channel.greeted(self, received)
        if cursor is None:
            return
        self._cursor, self.greeted = cursor, True
        if channel.asking:
            self._question = True
        if channel.taken:  # an acknowledgement may have been lost with the last connection
            self._own.append(FrameType.ACK)
        self.wake()

    def _answer_heartbeat(self) -> None:
        """Acknowledge now, or as soon as the program has taken everything."""
        with self._asking:  # else the program could take its last message between the two lines
            idle = not self._channel.inbox.bytes
            self._peer_asks = not idle
        if idle and self._channel.unacknowledged:
            self.acknowledge()
