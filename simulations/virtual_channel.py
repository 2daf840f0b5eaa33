"""In-memory channels whose messages take virtual time on the link of their node."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping

from ..core.errors import PeerLostError, WireError
from ..core.message import Message
from ..core.transfer import Direction, Recorder
from ..wire.channel import WINDOW_BYTES
from ..wire.frame import PREFIX_BYTES
from ..wire.ledger_recorder import LedgerRecorder
from ..wire.limits import DEFAULT
from ..wire.memory import MemoryChannel
from ..wire.pack import Packed, pack
from .virtual_device import VirtualLink, WorkCost
from .virtual_time import Program, VirtualTime

_DIRECTIONS: tuple[Direction, Direction] = ("down", "up")


class VirtualChannel(MemoryChannel):
    """One end of a channel in virtual time; made by :func:`virtual_pair`.

    Parameters
    ----------
    time : VirtualTime
    program : Program
        The program at this end.
    cost : WorkCost
        What it computes before it sends a message.
    link : VirtualLink
        The node's, for both ends.
    """

    def __init__(
        self,
        peer: str,
        direction: Direction,
        recorder: LedgerRecorder,
        *,
        time: VirtualTime,
        program: Program,
        cost: WorkCost,
        link: VirtualLink,
    ) -> None:
        super().__init__(peer, direction, recorder, WINDOW_BYTES, DEFAULT)
        self.time, self.program = time, program
        self._cost, self._link = cost, link
        self._arrivals: dict[int, tuple[float, int]] = {}  # when untaken messages arrive, and their bytes, in order
        self._outbound = self
        self._untaken = 0  # bytes that were sent and are not taken
        self._taken: deque[tuple[float, int]] = deque()  # when the other program took messages, and their bytes

    # ---- sending -------------------------------------------------------------------------------------------------

    def send(self, message: Message, timeout: float | None = None) -> None:
        """As :meth:`farshore.wire.channel.Channel.send`; the message leaves when the program has computed it."""
        packed = pack(message, self._limits)
        size = _frame_bytes(packed)
        with self.time.changed:
            self.program.compute(self._cost.seconds(message))
            while not self._has_room(size):
                if self._ended:
                    break
                if timeout is not None:
                    raise TimeoutError("the other program does not take what was sent before")
                self._wait_for_room()
            self._depart(message, packed, size)

    def _has_room(self, size: int) -> bool:
        """Whether the window has room for ``size`` bytes at the program's clock; a larger frame is sent alone."""
        while self._taken and self._taken[0][0] <= self.program.clock:
            self._taken.popleft()
        used = self._untaken + sum(size for _, size in self._taken)
        return not used or used + size <= self._window

    def _wait_for_room(self) -> None:
        """Advance the clock to when the other program takes a message; wait until it is known when that is."""
        if self._taken:
            self.program.wait_until(self._taken[0][0])
        else:
            self.time.wait(self.program, lambda: bool(self._taken) or self._ended)

    @property
    def _ended(self) -> bool:
        return self.inbox.error is not None or self._outbound.inbox.error is not None

    def publish(self, key: str, message: Message) -> None:
        """As :meth:`farshore.wire.channel.Channel.publish`, but all messages arrive: none supersedes another."""
        size = _frame_bytes(pack(message, self._limits, key))
        with self.time.changed:
            self.program.compute(self._cost.seconds(message))
            self._depart(message, pack(message, self._limits), size)

    def _depart(self, message: Message, packed: Packed, size: int) -> None:
        # Joining copies the arrays: the sender may modify them as soon as this returns.
        self._put(message, packed, memoryview(b"".join(packed.payload)), size)
        arrival = self._link.transfer(self._direction, size, self.program.clock)
        self._outbound._arrivals[self._sent] = arrival, size
        self._untaken += size
        self.time.changed.notify_all()

    # ---- receiving -----------------------------------------------------------------------------------------------

    @property
    def sender(self) -> Program:
        """The program at the other end."""
        return self._outbound.program

    @property
    def failed(self) -> bool:
        """Whether the channel has ended and all of its messages are taken."""
        return not self._arrivals and self.inbox.error is not None

    def next_arrival(self) -> float | None:
        """Return the time at which the next message arrives; None if none was sent."""
        return next((arrival for arrival, _ in self._arrivals.values()), None)

    def receive(self, timeout: float | None = None) -> Message:
        """As :meth:`farshore.wire.channel.Channel.receive`, with a timeout in virtual seconds."""
        return receive_first(self.time, self.program, {self.peer: self}, timeout)[1]

    def take(self, timeout: float | None = 0.0) -> Message | None:
        """Take a message that :meth:`VirtualTime.receive` has chosen; None if it went to a handler."""
        with self.time.changed:
            _, size = self._arrivals.pop(next(iter(self._arrivals), -1), (0.0, 0))
            self._outbound._untaken -= size
            self._outbound._taken.append((self.program.clock, size))
            self.time.changed.notify_all()
        return super().take(timeout)

    def watch_program(self, idle: Callable[[], bool]) -> Callable[[], None]:
        """Note that the program receives in a thread of its own; see :meth:`VirtualTime.watch`."""
        return self.time.watch(self.program, idle)

    def fail(self, error: Exception) -> None:
        """Make senders and receivers at this end raise ``error``."""
        super().fail(error)
        with self.time.changed:
            self.time.changed.notify_all()


def receive_first(
    time: VirtualTime, program: Program, channels: Mapping[str, VirtualChannel], timeout: float | None
) -> tuple[str, Message]:
    """Receive the message that arrives first in virtual time, with the name of its channel.

    Parameters
    ----------
    timeout : float, optional
        Virtual seconds.

    Raises
    ------
    PeerLostError, WireError
        With the channel's ``name``.
    TimeoutError
        Nothing arrives in time.
    """
    deadline = math.inf if timeout is None else program.clock + max(0.0, timeout)
    names = {id(channel): name for name, channel in channels.items()}
    while True:
        found = time.receive(program, list(channels.values()), deadline)
        try:
            message = found.take()
        except (PeerLostError, WireError) as error:
            error.name = names[id(found)]
            raise
        if message is not None:
            return names[id(found)], message


def virtual_pair(
    node: str,
    time: VirtualTime,
    programs: tuple[Program, Program],
    costs: tuple[WorkCost, WorkCost],
    link: VirtualLink,
    recorder: Recorder | None = None,
    attempt: int = 0,
) -> tuple[VirtualChannel, VirtualChannel]:
    """Return the server's and the node's end of a channel; every frame is recorded once.

    Parameters
    ----------
    node : str
        Name of the node.
    programs : (Program, Program)
        The server and the node.
    costs : (WorkCost, WorkCost)
        What each computes before it sends a message.
    """
    ledger = LedgerRecorder(node, attempt, recorder)
    server_end, node_end = (
        VirtualChannel(peer, direction, ledger, time=time, program=program, cost=cost, link=link)
        for peer, direction, program, cost in zip((node, "server"), _DIRECTIONS, programs, costs, strict=True)
    )
    server_end._other = server_end._outbound = node_end
    node_end._other = node_end._outbound = server_end
    return server_end, node_end


def _frame_bytes(packed: Packed) -> int:
    return PREFIX_BYTES + len(packed.header) + packed.payload_bytes
