"""Which nodes there are, and what the server knows of each. In memory; lives in the orchestrator's loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..proto import control_pb2 as pb
from ..runs.store import NodeRow

NodeState: TypeAlias = Literal["connected", "lost", "revoked"]

#: Heartbeats a node may miss before it is lost.
MISSES = 3


@dataclass(slots=True)
class Node:
    """One node.

    Attributes
    ----------
    commands : asyncio.Queue or None
        What goes down its control stream; None while it is not connected.
    run : str
        The run it works for, or empty.
    seen : float
        Monotonic time of its last sign of life.
    """

    name: str
    state: NodeState
    reason: str = ""
    hello: pb.Hello = field(default_factory=pb.Hello)
    heartbeat: pb.Heartbeat = field(default_factory=pb.Heartbeat)
    commands: asyncio.Queue[pb.NodeCommand] | None = None
    run: str = ""
    seen: float = 0.0
    seen_wall: float = 0.0

    def info(self) -> pb.NodeInfo:
        """What submitters see of it."""
        return pb.NodeInfo(
            name=self.name,
            state=self.state,
            reason=self.reason,
            profile=self.hello.profile,
            versions=self.hello.versions,
            data=self.hello.data,
            last_seen=self.seen_wall,
            runs=[self.run] if self.run else [],
            cpu_percent=self.heartbeat.cpu_percent,
            memory_used_bytes=self.heartbeat.memory_used_bytes,
        )


class Registry:
    """The nodes by name.

    Parameters
    ----------
    heartbeat_seconds : float
    on_change : callable
        Called after a node came, was lost or was revoked; the scheduler looks again.
    clock : callable
        Monotonic seconds; for tests.
    """

    def __init__(
        self,
        heartbeat_seconds: float,
        on_change: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.heartbeat_seconds = heartbeat_seconds
        self._nodes: dict[str, Node] = {}
        self._on_change = on_change
        self._clock = clock

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def get(self, name: str) -> Node | None:
        """The node called ``name``, if it was ever here."""
        return self._nodes.get(name)

    def known(self, rows: Iterable[NodeRow]) -> None:
        """Fill in the nodes that joined before this start; they are lost until they come back."""
        for row in rows:
            state: NodeState = "revoked" if row.revoked else "lost"
            reason = "revoked" if row.revoked else "not seen since the server started"
            self._nodes[row.name] = Node(row.name, state, reason, seen_wall=row.last_seen)

    def connect(self, name: str, hello: pb.Hello) -> tuple[Node, asyncio.Queue[pb.NodeCommand]]:
        """A node opened its control stream; a stream it had before is told goodbye."""
        node = self._nodes.setdefault(name, Node(name, "lost"))
        if node.commands is not None:
            _put(
                node.commands,
                pb.NodeCommand(goodbye=pb.Goodbye(reason="this node connected again from elsewhere")),
            )
        node.commands = asyncio.Queue(maxsize=256)
        node.state, node.reason, node.hello = "connected", "", hello
        self.touch(node)
        self._on_change()
        return node, node.commands

    def touch(self, node: Node) -> None:
        """A sign of life."""
        node.seen, node.seen_wall = self._clock(), time.time()

    def disconnect(self, node: Node, commands: asyncio.Queue[pb.NodeCommand]) -> None:
        """A control stream ended; the node has three heartbeats to come back before it is lost."""
        if node.commands is commands:
            node.commands = None
            if node.state == "connected":
                node.reason = "its control stream broke; waiting for it to come back"

    def leave(self, node: Node, reason: str) -> None:
        """The node said that it goes."""
        if node.state == "connected":
            node.state, node.reason = "lost", reason
            self._on_change()

    def revoke(self, name: str) -> Node | None:
        """The node's key was revoked; it is told goodbye."""
        node = self._nodes.get(name)
        if node is not None:
            node.state, node.reason = "revoked", "revoked"
            self.command(node, pb.NodeCommand(goodbye=pb.Goodbye(reason="this node was revoked")))
            self._on_change()
        return node

    def command(self, node: Node, command: pb.NodeCommand) -> bool:
        """Queue a command; False when the node is not connected or does not read."""
        return node.commands is not None and _put(node.commands, command)

    def expire(self) -> list[Node]:
        """Declare lost whoever missed three heartbeats; returns them."""
        limit = self._clock() - MISSES * self.heartbeat_seconds
        late = [n for n in self._nodes.values() if n.state == "connected" and n.seen < limit]
        for node in late:
            node.state, node.reason = "lost", f"missed {MISSES} heartbeats"
        if late:
            self._on_change()
        return late

    def next_expiry(self) -> float:
        """Seconds until a node could be the next to be lost, at least one heartbeat's quarter."""
        seen = min((n.seen for n in self._nodes.values() if n.state == "connected"), default=self._clock())
        wait = seen + MISSES * self.heartbeat_seconds - self._clock()
        return max(wait, self.heartbeat_seconds / 4)


def _put(queue: asyncio.Queue[pb.NodeCommand], command: pb.NodeCommand) -> bool:
    try:
        queue.put_nowait(command)
    except asyncio.QueueFull:
        return False
    return True
