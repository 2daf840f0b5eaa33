"""A channel: numbered frames, kept until the other program took them, replayed when a connection breaks.

The channel does no input or output itself. Connections come and go (:meth:`Channel.attach`); each is pumped by an I/O
thread that feeds arriving chunks in and asks for chunks to send. Programs only ever see :meth:`~Channel.send` and
:meth:`~Channel.receive`.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..core.errors import PeerLostError, WireError
from ..core.message import Message
from ..core.transfer import Direction, Recorder
from .accounts import Accountant
from .chunks import CHUNK_BYTES, Assembler, cut
from .frame import PREFIX_BYTES, FrameType, Prefix, make_prefix
from .inbox import Inbox, receive_any
from .limits import DEFAULT, Limits
from .pack import Packed, Summary, inspect, pack, unpack

__all__ = ["WINDOW_BYTES", "Attachment", "Channel", "receive_any"]

logger = logging.getLogger(__name__)

#: Bytes that may be on their way, or wait for the other program, per channel and direction: what a gigabit
#: link moves in 130 ms. With more, messages leave the processor's caches before they leave the process.
WINDOW_BYTES = 16 << 20

_KINDS = {
    FrameType.ACK: "ack",
    FrameType.HEARTBEAT: "heartbeat",
    FrameType.HELLO: "hello",
    FrameType.BYE: "bye",
}


_REASON_BYTES = 1000


@dataclass(slots=True)
class _Outgoing:
    """A frame that is kept, as it leaves; its acknowledgement is that of when it was made."""

    sequence: int
    chunks: tuple[bytes, ...]
    frame_bytes: int
    sent: bool = False


class Channel:
    """One end of a conversation; implements :class:`farshore.core.session.Channel`.

    Parameters
    ----------
    peer : str
        Name of the other end.
    node : str
        Name of the node at whichever end, for the ledger.
    side : {"server", "node"}
        Which end this is.
    epoch : int
        Frames of another epoch are refused; a peer in a later one means that this end's program is outdated.
    window_bytes : int
        Most bytes that the other program has not taken yet, so what either end holds is bounded even when a program
        stalls; one larger frame may travel alone. The same at both ends.
    recorder : Recorder, optional
        Gets a row per frame in either direction; the run process gives one, nodes do not.
    chunk_bytes : int
        Size of the chunks that frames are cut into; a slow link wants smaller ones, so that the other end sees
        progress.
    """

    def __init__(
        self,
        peer: str,
        node: str,
        side: Literal["server", "node"],
        *,
        epoch: int = 0,
        window_bytes: int = WINDOW_BYTES,
        limits: Limits = DEFAULT,
        recorder: Recorder | None = None,
        chunk_bytes: int = CHUNK_BYTES,
    ) -> None:
        self.peer = peer
        self.node = node
        self.epoch = epoch
        self.limits = limits
        self.inbox = Inbox()
        self._window = window_bytes
        self._out: Direction = "down" if side == "server" else "up"
        self._in: Direction = "up" if side == "server" else "down"
        self._accounts = Accountant(node, epoch, recorder)
        self.chunk_bytes = chunk_bytes
        self._lock = threading.Condition()
        self._sending = threading.Lock()  # frames leave in the order of their numbers
        self._pending: deque[_Outgoing] = deque()
        self._pending_bytes = 0
        self._next = 1
        self._received = 0
        self._taken = 0
        self._acknowledged = 0
        self._untold = 0
        self._asking = False
        self._attachment: Attachment | None = None
        self._closed = False
        self._reason = ""
        #: How many connections have worked so far.
        self.greetings = 0
        #: Whether the peer said goodbye.
        self.peer_left = False

    # ---- what programs see ---------------------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Queue a message; blocks while the window is full. The message's arrays may be changed afterwards.

        Raises
        ------
        PeerLostError
            The other program is gone for good.
        WireError
            The message is beyond the limits.
        """
        packed = pack(message, self.limits)
        size = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
        with self._sending:
            with self._lock:
                self._wait_for_room(size)
                sequence, told = self._next, self._taken
                self._untold = 0
            # Copying and summing up take a while, during which chunks can arrive.
            chunks = self._cut(packed, sequence, told)
            with self._lock:
                self._check_open()
                self._next += 1
                self._pending.append(_Outgoing(sequence, chunks, size))
                self._pending_bytes += size
                attachment = self._attachment
            place = Summary(message.kind, message.round, message.step, message.micro, 0, 0, "")
            self._accounts.data(self._out, packed, place, size)
        if attachment is not None:
            attachment.wake()

    def receive(self, timeout: float | None = None) -> Message:
        """The next message; blocks. Raw tensors are read-only views of what arrived.

        Raises
        ------
        PeerLostError
            The other program is gone for good.
        TimeoutError
            Nothing came within ``timeout`` seconds.
        WireError
            The message breaks the format.
        """
        header, payload, size = self.inbox.take(timeout)
        message = unpack(header, payload, self.limits)
        with self._lock:
            self._taken += 1
            self._untold += size
            attachment = self._attachment
            if attachment is not None and not attachment.should_tell(self._untold, self._window):
                attachment = None
        if attachment is not None:
            attachment.acknowledge()
        return message

    def close(self, timeout: float = 5.0, reason: str = "") -> None:
        """Say goodbye after everything sent was taken, or after ``timeout`` seconds; idempotent.

        Parameters
        ----------
        reason : str
            Told to the other program, whose next receive ends with it.
        """
        with self._lock:
            if self._pending and not self._stopped():
                self._ask()
            self._lock.wait_for(lambda: self._stopped() or self._all_taken(), timeout)
            self._reason = self._reason or reason
            if self._attachment is not None:
                self._attachment.say_goodbye()  # first: who finds the channel closed writes no more
            self._closed = True
            self._lock.notify_all()
        self.inbox.fail(PeerLostError(f"the channel to {self.peer} is closed"))

    def _all_taken(self) -> bool:
        # Between two connections the goodbye would get lost; one that never was needs none.
        connected = self._attachment is not None and self._attachment.greeted
        return not self._pending and (connected or not self.greetings)

    def _wait_for_room(self, size: int) -> None:
        if not self._fits(size) and not self._stopped():
            if size > self._window - self._window // 4:
                self._ask()  # else a quarter of the window is taken before this can block for long, and told
            self._lock.wait_for(lambda: self._fits(size) or self._stopped())
            self._asking = False
        self._check_open()

    def _check_open(self) -> None:
        if self._stopped():
            raise self.inbox.error or PeerLostError(f"the channel to {self.peer} is closed")

    def _cut(self, packed: Packed, sequence: int, told: int) -> tuple[bytes, ...]:
        prefix = make_prefix(FrameType.DATA, self.epoch, sequence, told, packed.header, packed.payload)
        return cut(prefix, packed.header, packed.payload, self.chunk_bytes)

    def fail(self, error: Exception) -> None:
        """Give up: senders and receivers get ``error``."""
        self.inbox.fail(error)
        with self._lock:
            self._lock.notify_all()
            attachment = self._attachment
        if attachment is not None:
            attachment.wake()

    def _ask(self) -> None:
        """Have the peer acknowledge as soon as its program has taken everything: somebody here waits for that."""
        self._asking = True
        if self._attachment is not None:
            self._attachment.ask()

    def _fits(self, size: int) -> bool:
        return not self._pending or self._pending_bytes + size <= self._window

    def _stopped(self) -> bool:
        return self._closed or self.inbox.error is not None

    @property
    def stopped(self) -> bool:
        """Whether the channel was closed or has failed; its connection may then go."""
        return self._stopped()

    @property
    def connected(self) -> bool:
        """Whether a connection is attached now."""
        return self._attachment is not None

    # ---- what connections see ------------------------------------------------------------------------------------

    def attach(self, wake: Callable[[], None]) -> Attachment:
        """Take a new connection into use; an older one is dropped.

        Parameters
        ----------
        wake : callable
            Called, from any thread, when there is something to send or the connection should end.
        """
        with self._lock:
            old = self._attachment
            self._attachment = new = Attachment(self, wake)
            if self._closed:
                new.say_goodbye()
            self._lock.notify_all()
        if old is not None:
            old.drop()
        return new

    def detach(self, attachment: Attachment) -> None:
        """A connection is gone; what it had not delivered goes out again on the next."""
        with self._lock:
            if self._attachment is attachment:
                self._attachment = None


class Attachment:
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

    def _next_frame(self) -> _Outgoing | None:
        channel = self._channel
        with channel._lock:
            if self._cursor is None or not channel._pending:
                return None
            place = max(self._cursor - channel._pending[0].sequence, 0)
            if place >= len(channel._pending):
                return None
            frame = channel._pending[place]
            self._cursor = frame.sequence + 1
            again, frame.sent = frame.sent, True
        if again:
            channel._accounts.overhead(channel._out, "retransmission", frame.frame_bytes)
        return frame

    def _own_frame(self, kind: FrameType) -> bytes:
        channel = self._channel
        header = channel._reason.encode()[:_REASON_BYTES] if kind is FrameType.BYE else b""
        channel._accounts.overhead(channel._out, _KINDS[kind], PREFIX_BYTES + len(header))
        # A hello tells what has arrived, so that nothing is sent twice; the others what the program took.
        told = channel._received if kind is FrameType.HELLO else self._told()
        return make_prefix(kind, channel.epoch, 0, told, header) + header

    def _told(self) -> int:
        channel = self._channel
        with channel._lock:
            channel._untold = 0
            return channel._taken

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
        channel._accounts.overhead(channel._in, _KINDS[prefix.type], prefix.frame_bytes)
        if prefix.type is FrameType.HEARTBEAT:
            with channel._lock:
                idle = not channel.inbox.bytes
                self.peer_waits = not idle
            if idle and channel._untold:
                self.acknowledge()
        if prefix.type is FrameType.BYE:
            self.ended = True
            channel.peer_left = True
            reason = bytes(body).decode(errors="replace")
            words = f"{channel.peer} closed the channel" + (f": {reason}" if reason else "")
            channel.inbox.fail(PeerLostError(words))
            with channel._lock:
                channel._lock.notify_all()
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
        with channel._lock:
            if received >= channel._next:
                raise WireError(f"{channel.peer} says it has frame {received}, which was never sent")
            if received < channel._acknowledged:
                lost = PeerLostError(
                    f"{channel.peer} has frames up to {received} and took {channel._acknowledged} before: "
                    "it is not the program that this conversation began with"
                )
                channel.inbox.fail(lost)
                channel._lock.notify_all()
                return
            self._cursor = received + 1
            self._question = channel._asking
            self.greeted = True
            channel.greetings += 1
            channel._lock.notify_all()
        if channel._taken:  # an acknowledgement may have got lost with the last connection
            self._own.append(FrameType.ACK)
        self.wake()

    def _acknowledged(self, sequence: int) -> None:
        channel = self._channel
        with channel._lock:
            if sequence >= channel._next:
                raise WireError(f"{channel.peer} acknowledges frame {sequence}, which was never sent")
            channel._acknowledged = max(channel._acknowledged, sequence)
            while channel._pending and channel._pending[0].sequence <= sequence:
                channel._pending_bytes -= channel._pending.popleft().frame_bytes
            channel._lock.notify_all()

    def _data(self, prefix: Prefix, body: memoryview) -> None:
        channel = self._channel
        if prefix.sequence <= channel._received:
            channel._accounts.overhead(channel._in, "retransmission", prefix.frame_bytes)
            return
        if prefix.sequence != channel._received + 1:
            raise WireError(f"{channel.peer} skipped from frame {channel._received} to {prefix.sequence}")
        if channel.inbox.bytes and channel.inbox.bytes + prefix.frame_bytes > 2 * channel._window:
            raise WireError(f"{channel.peer} sends more than the window of {channel._window} bytes")
        header, payload = body[: prefix.header_bytes], body[prefix.header_bytes :]
        if channel._accounts.recorder is not None:
            summary = inspect(header, channel.limits)
            if len(payload) != summary.payload_bytes:
                raise WireError(
                    f"frame {prefix.sequence} has {len(payload)} bytes of payload, its table {summary.payload_bytes}"
                )
            channel._accounts.data(channel._in, summary, summary, prefix.frame_bytes)
        channel._received = prefix.sequence
        channel.inbox.put(header, payload, prefix.frame_bytes)
