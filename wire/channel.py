"""A channel: numbered frames, kept until the other program took them, retransmitted when a connection breaks.

The channel does no input or output itself. Connections come and go (:meth:`Channel.attach`); each is pumped by an I/O
thread that feeds arriving chunks in and asks for chunks to send. Programs only ever see :meth:`~Channel.send`,
:meth:`~Channel.publish` and :meth:`~Channel.receive`; the methods of :class:`ConnectionSide` are the connection's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Literal

from ..core.errors import PeerLostError
from ..core.message import Message
from ..core.transfer import Direction, Recorder
from .chunks import CHUNK_BYTES, cut
from .connection import Connection
from .connection_side import ConnectionSide
from .frame import PREFIX_BYTES, FrameType, make_prefix
from .inbox import receive_any
from .ledger_recorder import LedgerRecorder
from .limits import DEFAULT, Limits
from .pack import Packed, Summary, pack, unpack

__all__ = ["WINDOW_BYTES", "Channel", "receive_any"]

#: Bytes that may be in flight or wait for the other program, per channel and direction: what a gigabit link moves in a
#: quarter of a second. Two messages of 16 MiB fit, so one travels while the program takes the other.
WINDOW_BYTES = 33 << 20

_NO_ROOM = "the other program does not take what was sent before"


class Channel(ConnectionSide):
    """One end of a conversation; implements :class:`farshore.core.session.Channel`.

    Parameters
    ----------
    peer : str
        Name of the other end.
    node : str
        Name of the node, at whichever end it is, for the ledger.
    side : {"server", "node"}
        Which end this is.
    epoch : int
        The run's restart epoch. Frames of another epoch are refused; a peer in a later one means that this end's
        program is outdated.
    window_bytes : int
        Most bytes that the other program has not taken yet, so that what either end holds is bounded even when a
        program stalls; one larger frame may travel alone. The same at both ends.
    recorder : Recorder, optional
        Gets a row per frame in either direction; the run process gives one, nodes do not.
    chunk_bytes : int
        Size of the chunks that frames are cut into; on a slow link smaller ones show the other end progress.
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
        outward: Direction = "down" if side == "server" else "up"
        super().__init__(peer, epoch, outward, LedgerRecorder(node, epoch, recorder), window_bytes, limits)
        self.node = node
        self.chunk_bytes = chunk_bytes
        #: Message kinds that do not go to the program: kind -> function that gets the message, in receive().
        self.handlers: Mapping[str, Callable[[Message], None]] = {}
        self._sending = threading.Lock()  # frames leave in the order of their numbers

    def send(self, message: Message, timeout: float | None = None) -> None:
        """Queue a message; blocks while the window is full. The message's arrays may be changed afterwards.

        Raises
        ------
        PeerLostError
            The other program is gone for good.
        TimeoutError
            There was no room within ``timeout`` seconds; nothing was queued.
        WireError
            The message is beyond the limits.
        """
        packed = pack(message, self.limits)
        self._expansion.sending(message.kind, packed)
        size = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
        with self._sending:
            with self._lock:
                self._check_open()
                if timeout is not None and timeout <= 0 and not self._outbox.fits(size):
                    raise TimeoutError(_NO_ROOM)
                sequence, (taken, taken_bytes) = self._outbox.next, self.inbox.taken()
            # Copying and hashing take a while, during which earlier frames may make room and chunks may arrive.
            chunks = self._cut(packed, sequence, taken)
            with self._lock:
                self._wait_for_room(size, timeout)
                self._outbox.put(chunks, size)
                self._expansion.sent(packed)
                # Only now: while this frame waited, acknowledgements had to leave on their own.
                self._acknowledged_bytes = max(self._acknowledged_bytes, taken_bytes)
                connection = self._connection
            self._recorder.data(self.outward, packed, _place(message), size)
        if connection is not None:
            connection.wake()

    def publish(self, key: str, message: Message) -> None:
        """Queue a message that supersedes an earlier one of the same key; never blocks.

        An earlier published message of ``key`` that has not left yet is dropped, and so is one that has arrived but
        was not received: a slow receiver gets the newest. Messages keep their order otherwise.

        Raises
        ------
        PeerLostError
            The other program is gone for good.
        WireError
            The message is beyond the limits.
        """
        packed = pack(message, self.limits, key)
        self._expansion.sending(message.kind, packed)
        size = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
        with self._sending:
            with self._lock:
                self._check_open()
                sequence, (taken, _) = self._outbox.next, self.inbox.taken()
            chunks = self._cut(packed, sequence, taken)
            with self._lock:
                self._check_open()
                if (stale := self._outbox.unsent(key)) is not None:
                    self._supersede(key, stale, taken)
                record = lambda: self._recorder.data(self.outward, packed, _place(message), size)  # noqa: E731
                self._outbox.publish(key, chunks, size, record)
                connection = self._connection
        if connection is not None:
            connection.wake()

    def receive(self, timeout: float | None = None) -> Message:
        """The next message; blocks. Raw tensors are read-only views of the received bytes.

        Raises
        ------
        PeerLostError
            The other program is gone for good.
        TimeoutError
            Nothing came within ``timeout`` seconds.
        WireError
            The message breaks the format.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            frame = self.inbox.take(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if isinstance(frame.header, Exception):
                raise frame.header
            message = unpack(frame.header, frame.payload, self.limits)
            with self._lock:
                connection = self._connection
                unacknowledged = self.inbox.taken()[1] - self._acknowledged_bytes
            if connection is not None and connection.should_acknowledge(unacknowledged):
                connection.acknowledge()
            if (handler := self.handlers.get(message.kind)) is None:
                return message
            handler(message)

    def close(self, timeout: float = 5.0, reason: str = "") -> None:
        """Say goodbye once everything sent was taken, or after ``timeout`` seconds; idempotent.

        Parameters
        ----------
        reason : str
            Reaches the other program, whose next receive ends with it.
        """
        with self._lock:
            if self._outbox and not self.stopped:
                self._ask()
            self._lock.wait_for(lambda: self.stopped or self._all_taken(), timeout)
            self._reason = self._reason or reason
            if self._connection is not None:
                self._connection.say_goodbye()  # first: a writer that finds the channel closed writes no more
            self._closed = True
            self._lock.notify_all()
        because = f": {self._reason}" if self._reason else ""
        self.inbox.fail(PeerLostError(f"the channel to {self.peer} is closed{because}"))

    def fail(self, error: Exception) -> None:
        """Give up: senders and receivers get ``error``."""
        self.inbox.fail(error)
        with self._lock:
            self._lock.notify_all()
            connection = self._connection
        if connection is not None:
            connection.wake()

    def drained(self, timeout: float | None = None) -> bool:
        """Wait until the other program has taken everything that was sent; False after ``timeout`` seconds."""
        with self._lock:
            if self._outbox:
                self._ask()
            done = self._lock.wait_for(lambda: not self._outbox, timeout)
            self._asking = False
            return done

    def attach(self, wake: Callable[[], None]) -> Connection:
        """Use a new connection; the present one, if any, is dropped.

        Parameters
        ----------
        wake : callable
            Called, from any thread, when there is something to send or the connection should end.
        """
        with self._lock:
            old = self._connection
            self._connection, self._working = (new := Connection(self, wake)), False
            if self._closed:
                new.say_goodbye()
            self._lock.notify_all()
        if old is not None:
            old.drop()
        return new

    def detach(self, connection: Connection) -> None:
        """Forget a connection that ended; frames that it had not delivered go out again on the next."""
        with self._lock:
            if self._connection is connection:
                self._connection, self._working = None, False

    def _all_taken(self) -> bool:
        # Between two connections the goodbye would get lost; a channel that never had one needs none.
        return not self._outbox and (self._working or not self.greetings)

    def _wait_for_room(self, size: int, timeout: float | None) -> None:
        if not self._outbox.fits(size) and not self.stopped:
            if size > self._outbox.window_bytes - self._outbox.window_bytes // 4:
                self._ask()  # smaller frames wait for a quarter of the window, which is acknowledged unasked
            room = self._lock.wait_for(lambda: self._outbox.fits(size) or self.stopped, timeout)
            self._asking = False
            if not room:
                raise TimeoutError(_NO_ROOM)
        self._check_open()

    def _check_open(self) -> None:
        if self.stopped:
            raise self.inbox.error or PeerLostError(f"the channel to {self.peer} is closed")

    def _cut(self, packed: Packed, sequence: int, taken: int) -> tuple[bytes, ...]:
        prefix = make_prefix(FrameType.DATA, self.epoch, sequence, taken, packed.header, packed.payload)
        return cut(prefix, packed.header, packed.payload, self.chunk_bytes)

    def _supersede(self, key: str, sequence: int, taken: int) -> None:
        skip = make_prefix(FrameType.SKIP, self.epoch, sequence, taken)
        self._outbox.supersede(key, skip, lambda: self._recorder.overhead(self.outward, "skip", len(skip)))

    def _ask(self) -> None:
        """Ask the peer to acknowledge as soon as its program has taken everything."""
        self._asking = True
        if self._connection is not None:
            self._connection.ask()


def _place(message: Message) -> Summary:
    return Summary(message.kind, message.round, message.step, message.micro, 0, 0, "")
