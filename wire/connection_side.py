"""What a channel offers to its connections: the next frame to send, acknowledgements, delivery of arrived frames."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from ..core.errors import PeerLostError, WireError
from ..core.expectations import Expected
from ..core.transfer import Direction
from .expansion import Expansion
from .frame import PREFIX_BYTES, FrameType, Prefix, make_prefix
from .inbox import Inbox
from .ledger_recorder import LedgerRecorder
from .limits import Limits
from .outbox import Outbox, Outgoing
from .pack import Header

if TYPE_CHECKING:
    from .connection import Connection

logger = logging.getLogger(__name__)

#: Ledger kinds of the channel's own frames.
KINDS = {
    FrameType.ACK: "ack",
    FrameType.HEARTBEAT: "heartbeat",
    FrameType.HELLO: "hello",
    FrameType.BYE: "bye",
    FrameType.SKIP: "skip",
}
#: Most bytes of the reason in a goodbye.
_REASON_BYTES = 1000


class ConnectionSide:
    """State of a channel, and the part of its interface that connections use.

    All fields are the channel's; a connection changes them through these methods only. ``_lock`` guards the outbox and
    the counters; the inbox guards itself.

    Attributes
    ----------
    peer : str
    epoch : int
    inbox : Inbox
    received : int
        Number of the last frame that arrived.
    greetings : int
        How many connections have worked so far.
    peer_left : bool
        Whether the peer said goodbye.
    """

    def __init__(
        self, peer: str, epoch: int, outward: Direction, recorder: LedgerRecorder, window_bytes: int, limits: Limits
    ) -> None:
        self.peer = peer
        self.epoch = epoch
        self.limits = limits
        self.outward: Direction = outward
        self.inward: Direction = "up" if outward == "down" else "down"
        self.inbox = Inbox()
        self._expansion = Expansion()
        self.received = self.greetings = 0
        self.peer_left = False
        self._recorder = recorder
        self._lock = threading.Condition()
        self._outbox = Outbox(window_bytes)
        self._acknowledged_bytes = 0  # of the frames taken here, those acknowledged
        self._asking = False  # whether a sender waits for the peer to take everything
        self._connection: Connection | None = None
        self._working = False  # whether that connection has been greeted
        self._closed = False
        self._reason = ""

    @property
    def stopped(self) -> bool:
        """Whether the channel was closed or has failed; its connection may then go."""
        return self._closed or self.inbox.error is not None

    @property
    def connected(self) -> bool:
        """Whether a connection is attached now."""
        return self._connection is not None

    @property
    def asking(self) -> bool:
        """Whether a sender on this side waits for the peer to take everything."""
        return self._asking

    @property
    def window_bytes(self) -> int:
        """Most bytes that are sent and not taken."""
        return self._outbox.window_bytes

    @property
    def taken(self) -> int:
        """Number of the last frame that the program on this side has taken."""
        return self.inbox.taken()[0]

    @property
    def unacknowledged(self) -> int:
        """Bytes taken here and not yet acknowledged."""
        with self._lock:
            return self.inbox.taken()[1] - self._acknowledged_bytes

    def expect(self, kinds: Mapping[str, Expected], *, only: bool = False) -> None:
        """See :meth:`farshore.core.session.Channel.expect`."""
        self._expansion.expect(kinds, only=only)

    @property
    def arriving_limits(self) -> Limits:
        """Limits of the next frame that arrives."""
        most = self._expansion.payload_bytes(self.limits)
        return self.limits if most == self.limits.payload_bytes else replace(self.limits, payload_bytes=most)

    # ---- sending -------------------------------------------------------------------------------------------------

    def next_frame(self, cursor: int) -> tuple[Outgoing | None, bool]:
        """The frame to send at or after number ``cursor``, and whether one is held back until the window has room."""
        with self._lock:
            frame = self._outbox.at(cursor)
            if frame is None:
                return None, False
            if not self._outbox.may_leave(frame):
                return None, True
            again = frame.sent
            if not again:
                self._outbox.leave(frame)
        if again:
            self._recorder.overhead(self.outward, "retransmission", frame.frame_bytes)
        elif frame.record is not None:
            frame.record()
        return frame, False

    def own_frame(self, kind: FrameType) -> bytes:
        """A frame of the channel's own, with the present acknowledgement."""
        header = self._reason.encode()[:_REASON_BYTES] if kind is FrameType.BYE else b""
        self._recorder.overhead(self.outward, KINDS[kind], PREFIX_BYTES + len(header))
        with self._lock:
            if kind is FrameType.HELLO:  # says what has arrived, so that nothing is sent twice
                number = self.received
            else:
                number, self._acknowledged_bytes = self.inbox.taken()
        return make_prefix(kind, self.epoch, 0, number, header) + header

    # ---- receiving -----------------------------------------------------------------------------------------------

    def greeted(self, connection: Connection, received: int) -> int | None:
        """Handle the peer's hello.

        Parameters
        ----------
        received : int
            Number of the last frame that the peer has.

        Returns
        -------
        int or None
            Number of the first frame to send; None where the peer is another program than before.

        Raises
        ------
        WireError
            The peer claims a frame that was never sent.
        """
        with self._lock:
            if received >= self._outbox.next:
                raise WireError(f"{self.peer} says it has frame {received}, which was never sent")
            if received < self._outbox.acknowledged:
                lost = PeerLostError(
                    f"{self.peer} has frames up to {received} but took {self._outbox.acknowledged} before: "
                    "it is not the program that this conversation began with"
                )
                self.inbox.fail(lost)
                self._lock.notify_all()
                return None
            self.greetings += 1
            self._working = self._working or connection is self._connection
            self._lock.notify_all()
            return received + 1

    def acknowledged(self, sequence: int) -> None:
        """Drop the frames that the peer's program has taken."""
        with self._lock:
            self._outbox.taken(sequence)
            self._lock.notify_all()

    def arrived(self, prefix: Prefix, body: memoryview) -> bool:
        """Deliver a numbered frame.

        Returns
        -------
        bool
            Whether an earlier frame was superseded, so that an acknowledgement may be due.

        Raises
        ------
        WireError
            The frame breaks the order, the window or the format.
        """
        if prefix.sequence <= self.received:
            self._recorder.overhead(self.inward, "retransmission", prefix.frame_bytes)
            return False
        if prefix.sequence != self.received + 1:
            raise WireError(f"{self.peer} skipped from frame {self.received} to {prefix.sequence}")
        if prefix.type is FrameType.SKIP:
            self.count(prefix)
            self.received = prefix.sequence
            self.inbox.skip(prefix.sequence, prefix.frame_bytes)
            return True
        if self.inbox.bytes and self.inbox.bytes + prefix.frame_bytes > 2 * self.window_bytes:
            raise WireError(f"{self.peer} sends more than the window of {self.window_bytes} bytes")
        payload = body[prefix.header_bytes :]
        header = self._read(prefix, body[: prefix.header_bytes], payload)
        self.received = prefix.sequence
        return self.inbox.put(prefix.sequence, header, payload, prefix.frame_bytes)

    def _read(self, prefix: Prefix, data: memoryview, payload: memoryview) -> Header | WireError:
        """Parse a header. Where a ledger is kept a bad one ends the connection, else the program gets the error."""
        try:
            header = Header.read(data, self.limits)
            self._expansion.arriving(header, len(payload))
        except WireError as error:
            if self._recorder.recorder is not None:
                raise
            return error
        if self._recorder.recorder is not None:
            summary = header.summary()
            if len(payload) != summary.payload_bytes:
                raise WireError(
                    f"frame {prefix.sequence} has {len(payload)} bytes of payload, its table {summary.payload_bytes}"
                )
            self._recorder.data(self.inward, summary, summary, prefix.frame_bytes)
        return header

    def count(self, prefix: Prefix) -> None:
        """Record one of the channel's own frames that arrived."""
        self._recorder.overhead(self.inward, KINDS[prefix.type], prefix.frame_bytes)

    def peer_closed(self, reason: str) -> None:
        """The peer said goodbye."""
        self.peer_left = True
        because = f": {reason}" if reason else ""
        self.inbox.fail(PeerLostError(f"{self.peer} closed the channel{because}"))
        with self._lock:
            self._lock.notify_all()

    def other_epoch(self, epoch: int) -> bool:
        """A frame of another restart epoch arrived; returns whether it ends this channel."""
        if epoch < self.epoch:
            # Left over from before a restart; that program learns the epoch from this end's hello.
            logger.info("dropped a frame of %s from the past epoch %d", self.peer, epoch)
            return False
        error = PeerLostError(f"{self.peer} has restarted (epoch {epoch}, this program is in {self.epoch})")
        self.inbox.fail(error)
        with self._lock:
            self._lock.notify_all()
        return True
