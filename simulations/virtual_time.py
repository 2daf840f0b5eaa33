"""Virtual time of a run whose programs are threads: clocks driven by messages, and the order in which these arrive.

Every program has a clock. It advances by the cost of what the program sends, and to the arrival of what it receives. A
program that waits for several channels, or until a deadline, goes on only when no other program can still send
something that arrives earlier. So the order of arrivals, and with it all times, depend on the configuration alone and
not on the real speed of the threads.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from ..core.errors import RunFailedError


class ReceivingEnd(Protocol):
    """The receiving end of a channel, as far as waiting needs it; messages arrive in the order of sending."""

    @property
    def sender(self) -> Program:
        """The program at the other end."""

    @property
    def failed(self) -> bool:
        """Whether the channel has ended and all of its messages are taken."""

    def next_arrival(self) -> float | None:
        """Return the time at which the next message arrives; None if none was sent."""


End = TypeVar("End", bound=ReceivingEnd)


@dataclass(slots=True)
class _Wait:
    """A wait for the first message of any of ``ends``, until ``deadline``.

    ``helper``: by a thread that only receives, for others which may compute meanwhile.
    """

    ends: Sequence[ReceivingEnd]
    deadline: float
    helper: bool

    def first(self) -> ReceivingEnd | None:
        """The end whose message arrives first, as far as is known; None if the deadline comes before."""
        found = [(at, index) for index, end in enumerate(self.ends) if (at := end.next_arrival()) is not None]
        at, index = min(found, default=(math.inf, 0))
        return self.ends[index] if found and at <= self.deadline else None

    @property
    def over(self) -> float:
        """When the wait is over, as far as is known."""
        return min([self.deadline, *(at for end in self.ends if (at := end.next_arrival()) is not None)])

    @property
    def failed(self) -> bool:
        return any(end.failed for end in self.ends) and all(end.next_arrival() is None for end in self.ends)

    @property
    def decided(self) -> bool:
        """Whether no message can come that arrives before :attr:`over`."""
        over = self.over
        return over < math.inf and all(
            end.next_arrival() is not None or end.sender.done or end.sender.clock > over for end in self.ends
        )


@dataclass(slots=True, eq=False)
class Program:
    """A program of the run, and its clock.

    Attributes
    ----------
    name : str
    order : int
        Decides between events of the same time.
    clock : float
        Virtual time in seconds since the run's start.
    computing, waiting : float
        Seconds of it that the program computed, and waited for messages.
    idle : callable, optional
        For programs that receive in a thread of their own: whether the others of their threads wait for a message.
    done : bool
        Whether it has ended.
    thread : int
        The thread that was the first to receive.
    """

    name: str
    order: int
    clock: float = 0.0
    computing: float = 0.0
    waiting: float = 0.0
    idle: Callable[[], bool] | None = None
    done: bool = False
    thread: int = 0
    wait: _Wait | None = field(default=None, repr=False)
    test: Callable[[], bool] | None = field(default=None, repr=False)

    def compute(self, seconds: float) -> None:
        """Advance the clock by a computation."""
        self.clock += seconds
        self.computing += seconds

    def wait_until(self, time: float) -> None:
        """Advance the clock to ``time``, unless it is past it."""
        self.waiting += max(0.0, time - self.clock)
        self.clock = max(self.clock, time)


class VirtualTime:
    """Decides when waiting programs go on. Thread-safe.

    Attributes
    ----------
    changed : Condition
        Guards all clocks and channels of the run; to be notified of every change that may end a wait.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self._programs: list[Program] = []

    def program(self, name: str) -> Program:
        """Add a program; add the nodes before the server, so that at equal times nodes go on first."""
        with self.changed:
            program = Program(name, len(self._programs))
            self._programs.append(program)
            return program

    def finish(self, program: Program) -> None:
        """Note that a program has ended."""
        with self.changed:
            program.done = True
            self.changed.notify_all()

    def watch(self, program: Program, idle: Callable[[], bool]) -> Callable[[], None]:
        """Set :attr:`Program.idle`; returns what to call when its value may have changed to true."""
        program.idle = idle

        def notify() -> None:
            with self.changed:
                self.changed.notify_all()

        return notify

    def receive(self, program: Program, ends: Sequence[End], deadline: float = math.inf) -> End:
        """Wait for the message that arrives first, and advance the clock to its arrival.

        Returns
        -------
        end
            Where to take the message; a failed end if nothing can be taken.

        Raises
        ------
        TimeoutError
            Nothing arrives until ``deadline``, which is the clock now.
        RunFailedError
            All programs wait for each other.
        """
        with self.changed:
            program.thread = program.thread or threading.get_ident()
            program.wait = wait = _Wait(ends, deadline, threading.get_ident() != program.thread)
            self.changed.notify_all()
            try:
                self.changed.wait_for(lambda: self._may_go(program, wait))
            finally:
                program.wait = None
            if wait.failed:
                return next(end for end in ends if end.failed)
            if wait.over == math.inf:
                raise RunFailedError("all programs of the run wait for each other's messages")
            program.wait_until(wait.over)
            found = wait.first()
            if found is None:
                raise TimeoutError("no message arrived in time")
            return next(end for end in ends if end is found)

    def wait(self, program: Program, test: Callable[[], bool]) -> None:
        """Wait, holding :attr:`changed`, until other programs make ``test`` true; the clock stays."""
        program.test = test
        self.changed.notify_all()
        try:
            self.changed.wait_for(test)
        finally:
            program.test = None

    def _may_go(self, program: Program, wait: _Wait) -> bool:
        if wait.failed:
            return True
        if program.idle is not None and not program.idle():
            return False
        return wait.decided or self._is_next(program, wait)

    def _is_next(self, program: Program, wait: _Wait) -> bool:
        """Whether all programs wait, and this one goes on first."""
        own = max(program.clock, wait.over), program.order
        if own[0] == math.inf and any(p.wait is not None and p.wait.helper for p in self._programs):
            return False  # another of that program's threads may send
        return all(_goes_later(other, own) for other in self._programs if other is not program and not other.done)


def _goes_later(program: Program, than: tuple[float, int]) -> bool:
    """Whether a program waits, and goes on after the time and order ``than``."""
    if program.test is not None:
        return not program.test()
    wait = program.wait
    if wait is None or wait.failed or wait.decided or (program.idle is not None and not program.idle()):
        return False
    return than < (max(program.clock, wait.over), program.order)
