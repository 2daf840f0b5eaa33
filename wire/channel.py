"""A channel: numbered frames, kept until the other program took them, replayed when a connection breaks.

The channel does no input or output itself. Connections come and go (:meth:`Channel.attach`); each is pumped by an I/O
thread that feeds arriving chunks in and asks for chunks to send. Programs only ever see :meth:`~Channel.send` and
:meth:`~Channel.receive`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Literal

from ..core.errors import PeerLostError
from ..core.message import Message
from ..core.transfer import Direction, Recorder
from .chunks import CHUNK_BYTES, cut
from .connection import Connection
from .frame import PREFIX_BYTES, FrameType, make_prefix
from .inbox import Inbox, receive_any
from .ledger_recorder import LedgerRecorder
from .limits import DEFAULT, Limits
from .outbox import Outbox
from .pack import Packed, Summary, pack, unpack

__all__ = ["WINDOW_BYTES", "Channel", "receive_any"]

#: Bytes that may be on their way, or wait for the other program, per channel and direction: what a gigabit link moves
#: in a quarter of a second. Two messages of 16 MiB fit, so one travels while the other is taken.
WINDOW_BYTES = 33 << 20

_NO_ROOM = "the other program does not take what was sent before"


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
        self.outward: Direction = "down" if side == "server" else "up"
        self.inward: Direction = "up" if side == "server" else "down"
        self.accounts = LedgerRecorder(node, epoch, recorder)
        self.chunk_bytes = chunk_bytes
        self.lock = threading.Condition()
        self.outbox = Outbox(window_bytes)
        self._sending = threading.Lock()  # frames leave in the order of their numbers
        #: Number of the last frame that arrived, and of the last that this side's program took.
        self.received = self.taken = 0
        #: Bytes of what was taken, and of what the other side was told of.
        self._taken_bytes = self._told_bytes = 0
        #: Whether somebody here waits for the other program to take everything.
        self.asking = False
        self._attachment: Connection | None = None
        self._closed = False
        self.reason = ""
        #: How many connections have worked so far.
        self.greetings = 0
        #: Whether the peer said goodbye.
        self.peer_left = False

    # ---- what programs see ---------------------------------------------------------------------------------------

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
        size = PREFIX_BYTES + len(packed.header) + packed.payload_bytes
        with self._sending:
            with self.lock:
                self._check_open()
                if timeout is not None and timeout <= 0 and not self.outbox.fits(size):
                    raise TimeoutError(_NO_ROOM)
                sequence, told, told_bytes = self.outbox.next, self.taken, self._taken_bytes
            # Copying and summing up take a while, during which what was sent before makes room, and chunks can arrive.
            chunks = self._cut(packed, sequence, told)
            with self.lock:
                self._wait_for_room(size, timeout)
                self.outbox.put(chunks, size)
                # Told only now: while this frame waited, acknowledgements had to leave by themselves.
                self._told_bytes = max(self._told_bytes, told_bytes)
                attachment = self._attachment
            place = Summary(message.kind, message.round, message.step, message.micro, 0, 0, "")
            self.accounts.data(self.outward, packed, place, size)
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
        with self.lock:
            self.taken += 1
            self._taken_bytes += size
            attachment = self._attachment
            if attachment is not None and not attachment.should_tell(self.untold, self.outbox.window_bytes):
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
        with self.lock:
            if self.outbox and not self._stopped():
                self._ask()
            self.lock.wait_for(lambda: self._stopped() or self._all_taken(), timeout)
            self.reason = self.reason or reason
            if self._attachment is not None:
                self._attachment.say_goodbye()  # first: who finds the channel closed writes no more
            self._closed = True
            self.lock.notify_all()
        words = f"the channel to {self.peer} is closed" + (f": {self.reason}" if self.reason else "")
        self.inbox.fail(PeerLostError(words))

    def _all_taken(self) -> bool:
        # Between two connections the goodbye would get lost; one that never was needs none.
        connected = self._attachment is not None and self._attachment.greeted
        return not self.outbox and (connected or not self.greetings)

    def _wait_for_room(self, size: int, timeout: float | None) -> None:
        if not self.outbox.fits(size) and not self._stopped():
            if size > self.outbox.window_bytes - self.outbox.window_bytes // 4:
                self._ask()  # else a quarter of the window is taken before this can block for long, and told
            room = self.lock.wait_for(lambda: self.outbox.fits(size) or self._stopped(), timeout)
            self.asking = False
            if not room:
                raise TimeoutError(_NO_ROOM)
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
        with self.lock:
            self.lock.notify_all()
            attachment = self._attachment
        if attachment is not None:
            attachment.wake()

    def _ask(self) -> None:
        """Have the peer acknowledge as soon as its program has taken everything: somebody here waits for that."""
        self.asking = True
        if self._attachment is not None:
            self._attachment.ask()

    def tell(self) -> int:
        """What this side's program took, for a frame that is about to be made; call it with the lock."""
        self._told_bytes = self._taken_bytes
        return self.taken

    @property
    def untold(self) -> int:
        """Bytes that were taken since the other side was told."""
        return self._taken_bytes - self._told_bytes

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

    def attach(self, wake: Callable[[], None]) -> Connection:
        """Take a new connection into use; an older one is dropped.

        Parameters
        ----------
        wake : callable
            Called, from any thread, when there is something to send or the connection should end.
        """
        with self.lock:
            old = self._attachment
            self._attachment = new = Connection(self, wake)
            if self._closed:
                new.say_goodbye()
            self.lock.notify_all()
        if old is not None:
            old.drop()
        return new

    def detach(self, attachment: Connection) -> None:
        """A connection is gone; what it had not delivered goes out again on the next."""
        with self.lock:
            if self._attachment is attachment:
                self._attachment = None
