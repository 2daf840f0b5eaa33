"""The channels of a run's nodes, and the changes of this set while the run is in progress."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..core.errors import PeerLostError, RunFailedError
from ..core.expectations import Expected
from ..core.message import Message
from ..core.nodes import NodeChange, NodeInfo
from .inbox import Inbox, Signal, receive_any, receive_unless


class CohortChannel(Protocol):
    """A channel, as far as :class:`Cohort` needs it."""

    @property
    def peer(self) -> str: ...

    @property
    def inbox(self) -> Inbox: ...

    def send(self, message: Message, timeout: float | None = None) -> None: ...

    def publish(self, key: str, message: Message) -> None: ...

    def receive(self, timeout: float | None = None) -> Message: ...

    def expect(self, kinds: Mapping[str, Expected], *, only: bool = False) -> None: ...

    def close(self, timeout: float = 5.0, reason: str = "") -> None: ...

    def fail(self, error: Exception) -> None: ...


class Cohort:
    """The nodes that a server program talks to.

    A node that returns or joins is first :meth:`offered <offer>`, by whatever thread did the handshake with it; the
    server program uses its channel from the next :meth:`readmit` or :meth:`receive` with ``changes`` on. So a program
    never finds another channel than a moment ago. Thread-safe.

    Parameters
    ----------
    channels : Mapping[str, CohortChannel]
        In cohort order.
    nodes : Mapping[str, NodeInfo]
        Of the same names.
    may_join : bool
        Whether nodes outside the cohort may join.
    on_wait : callable, optional
        ``on_wait(reason)``: called when the server program waits for nodes to return or join.
    on_resume : callable, optional
        Called when such a wait is over.
    """

    def __init__(
        self,
        channels: Mapping[str, CohortChannel],
        nodes: Mapping[str, NodeInfo],
        *,
        may_join: bool = False,
        on_wait: Callable[[str], None] = lambda reason: None,
        on_resume: Callable[[], None] = lambda: None,
    ) -> None:
        self.channels: dict[str, CohortChannel] = dict(channels)
        self.nodes: dict[str, NodeInfo] = dict(nodes)
        self._may_join = may_join
        self._on_wait, self._on_resume = on_wait, on_resume
        self._condition = threading.Condition()
        self._signal = Signal()
        self._ready: dict[str, tuple[CohortChannel, NodeInfo]] = {}
        self._excluded: dict[str, str] = {}
        self._reported: set[str] = set()  # lost or dismissed nodes; the program has received the loss
        self._error: Exception | None = None

    # ---- what other threads report -------------------------------------------------------------------------------

    def offer(self, node: str, channel: CohortChannel, info: NodeInfo | None = None) -> None:
        """Make the channel of a node that is ready known.

        Parameters
        ----------
        info : NodeInfo, optional
            Of a node that joins; a returned one is known.
        """
        with self._condition:
            if (old := self.channels.get(node)) is not None and old.inbox.error is None:
                old.fail(PeerLostError(f"node {node}: its program was started again"))
            self._ready[node] = channel, info or self.nodes[node]
            self._signal.set()
            self._condition.notify_all()

    def withdraw(self, node: str, error: Exception) -> bool:
        """Fail the channel of a node that was offered and is lost before it was used; returns whether there was one."""
        with self._condition:
            ready = self._ready.pop(node, None)
            if ready is not None:
                ready[0].fail(error)
            return ready is not None

    def exclude(self, node: str, reason: str) -> None:
        """Note that a node cannot return."""
        with self._condition:
            self._excluded[node] = reason
            self._signal.set()
            self._condition.notify_all()

    def fail(self, error: Exception) -> None:
        """Fail all channels, and whatever waits for nodes, with ``error``."""
        with self._condition:
            self._error = self._error or error
            for channel in (*self.channels.values(), *(channel for channel, _ in self._ready.values())):
                channel.fail(error)
            self._signal.set()
            self._condition.notify_all()

    def waiting(self) -> list[CohortChannel]:
        """Channels that were offered and are not used yet."""
        with self._condition:
            return [channel for channel, _ in self._ready.values()]

    # ---- what the server program asks for ------------------------------------------------------------------------

    def receive(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: bool = False
    ) -> tuple[str, Message | NodeChange]:
        """See :meth:`farshore.core.session.ServerSession.receive_any`."""
        if not changes:
            return receive_any(self.channels if nodes is None else {n: self.channels[n] for n in nodes}, timeout)
        deadline = None if timeout is None else time.monotonic() + timeout
        waited = False
        while True:
            with self._condition:
                if self._error is not None:
                    raise self._error
                self._signal.clear()
                # The loss of a node is reported before its return.
                ready = [node for node in self._ready if node not in self.channels or node in self._reported]
                if ready:
                    if waited:
                        self._on_resume()
                    return self._admit(ready[0])
                watched = {
                    name: channel
                    for name, channel in self.channels.items()
                    if name not in self._reported and (nodes is None or name in nodes)
                }
                if not watched:
                    self._check_hope()
                    if not waited:
                        self._on_wait(self._describe_wait())
                        waited = True
            try:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                received = receive_unless(watched, self._signal, left)
            except PeerLostError as error:
                if error.name not in watched or self._error is not None:
                    raise
                self._reported.add(error.name)
                return error.name, NodeChange("lost", str(error))
            if received is not None:
                return received

    def readmit(self, least: int) -> list[str]:
        """See :meth:`farshore.core.session.ServerSession.readmit`."""
        admitted: list[str] = []
        with self._condition:
            waited = False
            while True:
                for node in list(self._ready):
                    self._admit(node)
                    admitted.append(node)
                if self._error is not None:
                    raise self._error
                lost = {n: str(c.inbox.error) for n, c in self.channels.items() if c.inbox.error is not None}
                connected = len(self.channels) - len(lost)
                if connected >= least:
                    break
                self._check_reachable(least)
                waited = True
                self._on_wait(f"waiting for {least - connected} of {least} nodes: {'; '.join(lost.values())}")
                self._condition.wait()
        if waited:
            self._on_resume()
        return admitted

    def dismiss(self, node: str, reason: str) -> None:
        """Close the channel of a node; its loss is not reported."""
        self._reported.add(node)
        self.channels[node].close(0.0, reason)

    def _admit(self, node: str) -> tuple[str, NodeChange]:
        channel, info = self._ready.pop(node)
        change = NodeChange("returned" if node in self.channels else "joined")
        self.channels[node], self.nodes[node] = channel, info
        self._reported.discard(node)
        return node, change

    def _describe_wait(self) -> str:
        lost = "; ".join(str(c.inbox.error) for c in self.channels.values() if c.inbox.error is not None)
        return f"waiting for a node to return{' or join' if self._may_join else ''}: {lost}"

    def _check_hope(self) -> None:
        """Raise if no watched channel is left and none can appear."""
        if not self._may_join and self.channels.keys() <= self._excluded.keys():
            reasons = "; ".join(self._excluded.values())
            raise RunFailedError(f"no reachable nodes remain: {reasons}")

    def _check_reachable(self, least: int) -> None:
        left = len(self.channels) - len(self._excluded.keys() & self.channels.keys())
        if left < least and not self._may_join:
            reasons = "; ".join(self._excluded.values())
            raise RunFailedError(
                f"a round needs {least} nodes, but only {left} of {len(self.channels)} can still take part: {reasons}"
            )
