"""Tells a channel whether a rank's threads wait for messages that the thread of its collectives receives."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from ...core.session import Channel


@dataclass(slots=True, eq=False)
class _Wait:
    fulfilled: Callable[[], bool]
    over: bool = False


class ThreadWaits:
    """The waits of a rank's threads, for channels in virtual time; without effect on other channels.

    A channel in virtual time has a method ``watch_program``. It gives the receiving thread a message only while the
    rank waits for one, so that the rank's clock does not depend on the real speed of its threads.

    Parameters
    ----------
    channel : Channel

    Attributes
    ----------
    active : bool
        Whether the channel is in virtual time.
    """

    def __init__(self, channel: Channel) -> None:
        watch = getattr(channel, "watch_program", None)
        self.active = watch is not None
        self._lock = threading.Lock()
        self._waits: list[_Wait] = []
        self._hidden = False
        self._notify: Callable[[], None] = watch(self._idle) if watch is not None else _nothing

    @contextmanager
    def waiting(self, fulfilled: Callable[[], bool]) -> Iterator[None]:
        """Note that the calling thread waits until ``fulfilled``, which the receiving thread brings about."""
        if not self.active:
            yield
            return
        wait = _Wait(fulfilled)
        with self._lock:
            wait.over = fulfilled()
            self._waits.append(wait)
        self._notify()
        try:
            yield
        finally:
            with self._lock:
                self._waits.remove(wait)

    def update(self) -> None:
        """Check what is waited for; called by the receiving thread after each message."""
        with self._lock:
            for wait in self._waits:
                wait.over = wait.over or wait.fulfilled()

    def hide(self) -> None:
        """Note that a thread may wait without :meth:`waiting`: messages are then received as soon as they come."""
        self._hidden = True
        self._notify()

    def _idle(self) -> bool:
        with self._lock:
            return self._hidden or (bool(self._waits) and not any(wait.over for wait in self._waits))


def _nothing() -> None:
    pass
