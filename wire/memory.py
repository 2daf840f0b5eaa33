"""In-memory channels between programs of one process.

Messages are packed and unpacked as for a network, so that encodings apply and frame sizes are real. Checksums, chunks
and acknowledgements are left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from ..core.errors import PeerLostError
from ..core.expectations import Expected
from ..core.message import Message
from ..core.transfer import Direction, Recorder
from .channel import WINDOW_BYTES
from .expansion import Expansion
from .frame import PREFIX_BYTES
from .inbox import Inbox
from .ledger_recorder import LedgerRecorder
from .limits import DEFAULT, Limits
from .pack import Header, Packed, Summary, pack, unpack


class MemoryChannel:
    """One end of an in-memory channel; created by :func:`pair`."""

    def __init__(
        self, peer: str, direction: Direction, recorder: LedgerRecorder, window_bytes: int, limits: Limits
    ) -> None:
        self.peer = peer
        self.inbox = Inbox()
        self._direction = direction
        self._recorder = recorder
        self._sent = 0
        self.handlers: Mapping[str, Callable[[Message], None]] = {}  # see :class:`.Channel`
        self._window = window_bytes
        self._limits = limits
        self._expansion = Expansion()
        self._space = threading.Condition()
        self._other: MemoryChannel = self

    def send(self, message: Message, timeout: float | None = None) -> None:
        """As :meth:`farshore.wire.channel.Channel.send`."""
        packed = pack(message, self._limits)
        self._expansion.sending(message.kind, packed)
        size = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
        # Joining copies the arrays: the sender may modify them as soon as this returns.
        payload = memoryview(b"".join(packed.payload))
        inbox = self._other.inbox
        with self._other._space:
            has_space = self._other._space.wait_for(
                lambda: not inbox.bytes or inbox.bytes + size <= self._window or self.inbox.error or inbox.error,
                timeout,
            )
        if not has_space:
            raise TimeoutError("the other program does not take what was sent before")
        self._expansion.sent(packed)
        self._put(message, packed, payload, size)

    def publish(self, key: str, message: Message) -> None:
        """As :meth:`farshore.wire.channel.Channel.publish`."""
        packed = pack(message, self._limits, key)
        self._expansion.sending(message.kind, packed)
        size = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
        self._put(message, packed, memoryview(b"".join(packed.payload)), size)

    def _put(self, message: Message, packed: Packed, payload: memoryview, size: int) -> None:
        inbox = self._other.inbox
        if self.inbox.error or inbox.error:
            raise self.inbox.error or PeerLostError(f"the channel to {self.peer} is closed")
        summary = Summary(message.kind, message.round, message.step, message.micro, 0, 0, "")
        self._recorder.data(self._direction, packed, summary, size)
        with self._other._space:
            self._sent += 1
            inbox.put(self._sent, Header.read(packed.header, self._limits), payload, size)

    def receive(self, timeout: float | None = None) -> Message:
        """As :meth:`farshore.wire.channel.Channel.receive`."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            message = self.take(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if message is not None:
                return message

    def take(self, timeout: float | None) -> Message | None:
        """Take the next message; None if it went to a handler. Errors are those of :meth:`receive`."""
        frame = self.inbox.take(timeout)
        with self._space:
            self._space.notify_all()
        assert isinstance(frame.header, Header)
        self._expansion.arriving(frame.header, len(frame.payload))
        message = unpack(frame.header, frame.payload, self._limits)
        if (handler := self.handlers.get(message.kind)) is None:
            return message
        handler(message)
        return None

    def expect(self, kinds: Mapping[str, Expected], *, only: bool = False) -> None:
        """As :meth:`farshore.core.session.Channel.expect`."""
        self._expansion.expect(kinds, only=only)

    def fail(self, error: Exception) -> None:
        """Make senders and receivers at this end raise ``error``."""
        self.inbox.fail(error)
        for end in (self, self._other):
            with end._space:
                end._space.notify_all()

    def close(self, timeout: float = 5.0, reason: str = "") -> None:
        """Close the channel; messages already sent can still be received.

        Parameters
        ----------
        timeout : float
            Ignored.
        reason : str
            Given to the other program, in the error of its next receive.
        """
        text = f"{self._other.peer} closed the channel" + (f": {reason}" if reason else "")
        self._other.fail(PeerLostError(text))
        self.fail(PeerLostError(f"the channel to {self.peer} is closed"))


def pair(
    node: str,
    *,
    recorder: Recorder | None = None,
    window_bytes: int = WINDOW_BYTES,
    limits: Limits = DEFAULT,
    attempt: int = 0,
) -> tuple[MemoryChannel, MemoryChannel]:
    """Return the server's and the node's end of a channel; every frame is recorded once.

    Parameters
    ----------
    node : str
        Name of the node.
    recorder : Recorder, optional
        Called with a ledger row for each frame.
    window_bytes : int
        Maximum bytes that were sent and not received; a single larger frame is sent alone.
    limits : Limits
    attempt : int
        Restart epoch, for the ledger.
    """
    ledger = LedgerRecorder(node, attempt, recorder)
    server = MemoryChannel(node, "down", ledger, window_bytes, limits)
    node_end = MemoryChannel("server", "up", ledger, window_bytes, limits)
    server._other, node_end._other = node_end, server
    return server, node_end
