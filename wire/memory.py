"""Channels inside one process: the frames of a network without a network.

Messages are packed and unpacked as everywhere, so encodings apply and sizes are those of real frames; checksums,
chunks and acknowledgements have no work to do here and are left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from ..core.errors import PeerLostError
from ..core.message import Message
from ..core.transfer import Direction, Recorder
from .channel import WINDOW_BYTES
from .frame import PREFIX_BYTES
from .inbox import Inbox
from .ledger_recorder import LedgerRecorder
from .limits import DEFAULT, Limits
from .pack import Header, Packed, Summary, pack, unpack


class MemoryChannel:
    """One end of a conversation in memory; made by :func:`pair`."""

    def __init__(
        self, peer: str, direction: Direction, recorder: LedgerRecorder, window_bytes: int, limits: Limits
    ) -> None:
        self.peer = peer
        self.inbox = Inbox()
        self._direction = direction
        self._recorder = recorder
        self._sent = 0
        self.handlers: Mapping[str, Callable[[Message], None]] = {}  # as of :class:`.Channel`
        self._window = window_bytes
        self._limits = limits
        self._room = threading.Condition()
        self._other: MemoryChannel = self

    def send(self, message: Message, timeout: float | None = None) -> None:
        """As :meth:`farshore.wire.channel.Channel.send`."""
        packed = pack(message, self._limits)
        size = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
        # Joined, which copies: the sender may change its arrays as soon as this returns.
        payload = memoryview(b"".join(packed.payload))
        inbox = self._other.inbox
        with self._other._room:
            room = self._other._room.wait_for(
                lambda: not inbox.bytes or inbox.bytes + size <= self._window or self.inbox.error or inbox.error,
                timeout,
            )
        if not room:
            raise TimeoutError("the other program does not take what was sent before")
        self._put(message, packed, payload, size)

    def publish(self, key: str, message: Message) -> None:
        """As :meth:`farshore.wire.channel.Channel.publish`."""
        packed = pack(message, self._limits, key)
        size = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
        self._put(message, packed, memoryview(b"".join(packed.payload)), size)

    def _put(self, message: Message, packed: Packed, payload: memoryview, size: int) -> None:
        inbox = self._other.inbox
        if self.inbox.error or inbox.error:
            raise self.inbox.error or PeerLostError(f"the channel to {self.peer} is closed")
        place = Summary(message.kind, message.round, message.step, message.micro, 0, 0, "")
        self._recorder.data(self._direction, packed, place, size)
        with self._other._room:
            self._sent += 1
            inbox.put(self._sent, Header.read(packed.header, self._limits), payload, size)

    def receive(self, timeout: float | None = None) -> Message:
        """As :meth:`farshore.wire.channel.Channel.receive`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            frame = self.inbox.take(None if deadline is None else max(0.0, deadline - time.monotonic()))
            with self._room:
                self._room.notify_all()
            assert isinstance(frame.header, Header)
            message = unpack(frame.header, frame.payload, self._limits)
            if (handler := self.handlers.get(message.kind)) is None:
                return message
            handler(message)

    def fail(self, error: Exception) -> None:
        """Give up: this end's senders and receivers get ``error``."""
        self.inbox.fail(error)
        for end in (self, self._other):
            with end._room:
                end._room.notify_all()

    def close(self, timeout: float = 5.0, reason: str = "") -> None:
        """Say that nothing more comes, and why; what was sent can still be received."""
        words = f"{self._other.peer} closed the channel" + (f": {reason}" if reason else "")
        self._other.fail(PeerLostError(words))
        self.fail(PeerLostError(f"the channel to {self.peer} is closed"))


def pair(
    node: str,
    *,
    recorder: Recorder | None = None,
    window_bytes: int = WINDOW_BYTES,
    limits: Limits = DEFAULT,
    attempt: int = 0,
) -> tuple[MemoryChannel, MemoryChannel]:
    """The server's and the node's end of a conversation; every frame is recorded once."""
    ledger = LedgerRecorder(node, attempt, recorder)
    server = MemoryChannel(node, "down", ledger, window_bytes, limits)
    mine = MemoryChannel("server", "up", ledger, window_bytes, limits)
    server._other, mine._other = mine, server
    return server, mine
