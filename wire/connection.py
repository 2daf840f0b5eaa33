"""One connection of a channel: turns chunks that arrived into messages, and what waits into chunks to send."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..core.errors import PeerLostError, WireError
from .chunks import Assembler
from .frame import PREFIX_BYTES, FrameType, Prefix, make_prefix
from .outbox import Outgoing
from .pack import inspect

if TYPE_CHECKING:
    from .channel import Channel

logger = logging.getLogger(__name__)

_KINDS = {
    FrameType.ACK: "ack",
    FrameType.HEARTBEAT: "heartbeat",
    FrameType.HELLO: "hello",
    FrameType.BYE: "bye",
}
#: Of a goodbye's reason, so much is told.
_REASON_BYTES = 1000


class Connection:
    """One connection of a channel: the side that I/O threads talk to. Not thread-safe but for :meth:`wake`."""

    def __init__(self, channel: Channel, wake: Callable[[], None]) -> None:
        self._channel = channel
        self._wake = wake
        self._assembler = Assembler(channel.limits)
        self._own: deque[FrameType] = deque([FrameType.HELLO])
        self._unaware = True  # the I/O thread was not woken since it last looked for work
        self._cursor: int | None = None  # next data frame to send; unknown until the peer's hello
        self._question = False
        self._goodbye = False
        self.greeted = False
        self.peer_waits = False
        self.dropped = False
        self.ended = False

    def wake(self) -> None:
        """Have the I/O thread look for work; from any thread."""
        # Once is enough until it looks: waking a loop takes a system call.
        if self._unaware:
            self._unaware = False
            self._wake()

    def drop(self) -> None:
        """End this connection; the channel goes on without it."""
        self.dropped = True
        self.wake()

    def should_tell(self, untold: int, window: int) -> bool:
        """Whether ``untold`` bytes taken by the program are worth an acknowledgement of their own."""
        if self.peer_waits and not self._channel.inbox.bytes:
            self.peer_waits = False
            return True
        return untold >= window // 4

    def acknowledge(self) -> None:
        """Send an acknowledgement by itself."""
        self._own.append(FrameType.ACK)
        self.wake()

    def heartbeat(self) -> None:
        """Send a sign of life; it carries the acknowledgement too."""
        self._own.append(FrameType.HEARTBEAT)
        self.wake()

    def ask(self) -> None:
        """Send a sign of life after all that waits: it asks for an acknowledgement, so it must not overtake."""
        self._question = True
        self.wake()

    def say_goodbye(self) -> None:
        """Tell the peer that nothing more comes, after all that was sent."""
        self._goodbye = True
        self.wake()

    # ---- sending -------------------------------------------------------------------------------------------------

    def outgoing(self) -> Iterator[bytes]:
        """Chunks that can leave now; returns when there are none left. The connection may stop in between."""
        self._unaware = True
        rest: Iterator[bytes] = iter(())  # of the frame that is under way
        while not self.dropped:
            if (chunk := next(rest, None)) is not None:
                yield chunk
            elif self._own:
                yield self._own_frame(self._own.popleft())
            elif (frame := self._next_frame()) is not None:
                rest = iter(frame.chunks)
            elif self._question and self.greeted:
                self._question = False
                yield self._own_frame(FrameType.HEARTBEAT)
            elif self._goodbye:
                self._goodbye = False
                yield self._own_frame(FrameType.BYE)
            else:
                return

    def _next_frame(self) -> Outgoing | None:
        channel = self._channel
        with channel.lock:
            if self._cursor is None or (frame := channel.outbox.at(self._cursor)) is None:
                return None
            self._cursor = frame.sequence + 1
            again, frame.sent = frame.sent, True
        if again:
            channel.accounts.overhead(channel.outward, "retransmission", frame.frame_bytes)
        return frame

    def _own_frame(self, kind: FrameType) -> bytes:
        channel = self._channel
        header = channel.reason.encode()[:_REASON_BYTES] if kind is FrameType.BYE else b""
        channel.accounts.overhead(channel.outward, _KINDS[kind], PREFIX_BYTES + len(header))
        # A hello tells what has arrived, so that nothing is sent twice; the others what the program took.
        with channel.lock:
            told = channel.received if kind is FrameType.HELLO else channel.tell()
        return make_prefix(kind, channel.epoch, 0, told, header) + header

    # ---- receiving -----------------------------------------------------------------------------------------------

    def feed(self, chunk: bytes) -> None:
        """Take a chunk that arrived.

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
            self._other_epoch(prefix.epoch)
            return
        if prefix.type is FrameType.HELLO:
            self._greet(prefix.acknowledged)
        elif not self.greeted:
            raise WireError(f"{channel.peer} sent a frame before its hello")
        else:
            self._acknowledged(prefix.acknowledged)
        if prefix.type is FrameType.DATA:
            self._data(prefix, body)
            return
        channel.accounts.overhead(channel.inward, _KINDS[prefix.type], prefix.frame_bytes)
        if prefix.type is FrameType.HEARTBEAT:
            with channel.lock:
                idle = not channel.inbox.bytes
                self.peer_waits = not idle
            if idle and channel.untold:
                self.acknowledge()
        if prefix.type is FrameType.BYE:
            self.ended = True
            channel.peer_left = True
            reason = bytes(body).decode(errors="replace")
            words = f"{channel.peer} closed the channel" + (f": {reason}" if reason else "")
            channel.inbox.fail(PeerLostError(words))
            with channel.lock:
                channel.lock.notify_all()
            self.wake()

    def _other_epoch(self, epoch: int) -> None:
        channel = self._channel
        if epoch > channel.epoch:
            channel.fail(
                PeerLostError(f"{channel.peer} has restarted (epoch {epoch}, this program is in {channel.epoch})")
            )
            self.drop()
            return
        # Left over from before a restart; this end's hello tells that program so.
        logger.info("dropped a frame of %s from the past epoch %d", channel.peer, epoch)

    def _greet(self, received: int) -> None:
        channel = self._channel
        with channel.lock:
            if received >= channel.outbox.next:
                raise WireError(f"{channel.peer} says it has frame {received}, which was never sent")
            if received < channel.outbox.acknowledged:
                lost = PeerLostError(
                    f"{channel.peer} has frames up to {received} and took {channel.outbox.acknowledged} before: "
                    "it is not the program that this conversation began with"
                )
                channel.inbox.fail(lost)
                channel.lock.notify_all()
                return
            self._cursor = received + 1
            self._question = channel.asking
            self.greeted = True
            channel.greetings += 1
            channel.lock.notify_all()
        if channel.taken:  # an acknowledgement may have got lost with the last connection
            self._own.append(FrameType.ACK)
        self.wake()

    def _acknowledged(self, sequence: int) -> None:
        channel = self._channel
        with channel.lock:
            channel.outbox.taken(sequence)
            channel.lock.notify_all()

    def _data(self, prefix: Prefix, body: memoryview) -> None:
        channel = self._channel
        if prefix.sequence <= channel.received:
            channel.accounts.overhead(channel.inward, "retransmission", prefix.frame_bytes)
            return
        if prefix.sequence != channel.received + 1:
            raise WireError(f"{channel.peer} skipped from frame {channel.received} to {prefix.sequence}")
        if channel.inbox.bytes and channel.inbox.bytes + prefix.frame_bytes > 2 * channel.outbox.window_bytes:
            raise WireError(f"{channel.peer} sends more than the window of {channel.outbox.window_bytes} bytes")
        header, payload = body[: prefix.header_bytes], body[prefix.header_bytes :]
        if channel.accounts.recorder is not None:
            summary = inspect(header, channel.limits)
            if len(payload) != summary.payload_bytes:
                raise WireError(
                    f"frame {prefix.sequence} has {len(payload)} bytes of payload, its table {summary.payload_bytes}"
                )
            channel.accounts.data(channel.inward, summary, summary, prefix.frame_bytes)
        channel.received = prefix.sequence
        channel.inbox.put(header, payload, prefix.frame_bytes)
