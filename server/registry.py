"""The in-memory registry of nodes and their connection state; use from the orchestrator's event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ..proto import control_pb2 as pb
from ..runs.store import NodeRow

NodeState: TypeAlias = Literal["connected", "lost", "revoked"]

#: Missed heartbeats after which a node is declared lost.
MAX_MISSED_HEARTBEATS = 3


@dataclass(slots=True)
class Node:
    """A node and its state.

    Attributes
    ----------
    commands : asyncio.Queue or None
        Commands for its control stream; None while it is not connected.
    run : str
        The run that the node is assigned to, or empty.
    seen : float
        Monotonic time of its last event or heartbeat, in seconds.
    seen_wall : float
        The same in seconds since 1970.
    address : str
        Host from which it connected last.
    contested : str
        What was observed when its key was used in two places; empty if it was not.
    challenge : (str, Future) or None
        Nonce of a pending question whether its process still runs, and the answer.
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
    address: str = ""
    contested: str = ""
    challenge: tuple[str, asyncio.Future[bool]] | None = None

    @property
    def visible_state(self) -> str:
        """The state for operators, ``contested`` before ``connected`` and ``lost``."""
        return "contested" if self.contested and self.state != "revoked" else self.state

    def answer(self, nonce: str) -> None:
        """Handle the answer to the pending challenge; others are ignored."""
        if self.challenge is not None and self.challenge[0] == nonce:
            self.settle(True)

    def settle(self, alive: bool) -> None:
        """Answer the pending challenge, if there is one."""
        if self.challenge is not None and not self.challenge[1].done():
            self.challenge[1].set_result(alive)

    def info(self) -> pb.NodeInfo:
        """Return the node as a message for submitters."""
        contested = self.visible_state == "contested"
        reason = f"its key is used in two places: {self.contested}" if contested else self.reason
        return pb.NodeInfo(
            name=self.name,
            state=self.visible_state,
            reason=reason,
            profile=self.hello.profile,
            versions=self.hello.versions,
            data=self.hello.data,
            last_seen=self.seen_wall,
            runs=[self.run] if self.run else [],
            cpu_percent=self.heartbeat.cpu_percent,
            memory_used_bytes=self.heartbeat.memory_used_bytes,
            labels=self.hello.labels,
            address=self.address,
        )


class Registry:
    """The nodes of a server by name.

    Parameters
    ----------
    heartbeat_seconds : float
    on_change : callable
        Called after a node connected, was lost or was revoked; runs the scheduler.
    clock : callable
        Returns monotonic seconds; replaceable in tests.
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
        """Return the node ``name``, or None if it has never joined."""
        return self._nodes.get(name)

    def load(self, rows: Iterable[NodeRow]) -> None:
        """Add the nodes of previous server starts; they count as lost until they connect."""
        for row in rows:
            state: NodeState = "revoked" if row.revoked else "lost"
            reason = "revoked" if row.revoked else "not seen since the server started"
            self._nodes[row.name] = Node(row.name, state, reason, seen_wall=row.last_seen)

    def connect(self, name: str, hello: pb.Hello) -> tuple[Node, asyncio.Queue[pb.NodeCommand]]:
        """Register a new control stream of a node; returns the node and its command queue.

        An earlier stream of the same node is ended; should its process still run, it has to connect again.
        """
        node = self._nodes.setdefault(name, Node(name, "lost"))
        if node.commands is not None:
            _put(node.commands, pb.NodeCommand())
        node.commands = asyncio.Queue(maxsize=256)
        node.state, node.reason, node.hello = "connected", "", hello
        self.touch(node)
        self._on_change()
        return node, node.commands

    def touch(self, node: Node) -> None:
        """Record that the node has just been heard from."""
        node.seen, node.seen_wall = self._clock(), time.time()

    def disconnect(self, node: Node, commands: asyncio.Queue[pb.NodeCommand]) -> None:
        """Record that a control stream ended; the node has three heartbeats to reconnect before it is lost."""
        if node.commands is commands:
            node.commands = None
            node.settle(False)
            if node.state == "connected":
                node.reason = "its control stream broke; waiting for it to reconnect"

    def leave(self, node: Node, reason: str) -> None:
        """Mark a node that has left as lost."""
        if node.state == "connected":
            node.state, node.reason = "lost", reason
            self._on_change()

    def revoke(self, name: str) -> Node | None:
        """Mark a node as revoked and send it a goodbye command; returns the node, or None if it is unknown."""
        node = self._nodes.get(name)
        if node is not None:
            node.state, node.reason = "revoked", "revoked"
            self.command(node, pb.NodeCommand(goodbye=pb.Goodbye(reason="this node was revoked")))
            self._on_change()
        return node

    def end_stream(self, node: Node) -> None:
        """End a node's control stream; its agent reconnects."""
        self.command(node, pb.NodeCommand())  # without a command: the end

    def changed(self) -> None:
        """Run the scheduler, as after a change of a node's state."""
        self._on_change()

    def command(self, node: Node, command: pb.NodeCommand) -> bool:
        """Queue a command; returns False if the node is not connected or its queue is full."""
        return node.commands is not None and _put(node.commands, command)

    def expire(self) -> list[Node]:
        """Mark nodes that missed three heartbeats as lost; returns them."""
        limit = self._clock() - MAX_MISSED_HEARTBEATS * self.heartbeat_seconds
        late = [n for n in self._nodes.values() if n.state == "connected" and n.seen < limit]
        for node in late:
            node.state, node.reason = "lost", f"missed {MAX_MISSED_HEARTBEATS} heartbeats"
        if late:
            self._on_change()
        return late

    def next_expiry(self) -> float:
        """Return the seconds until the next node could be lost, at least a quarter of the heartbeat interval."""
        seen = min((n.seen for n in self._nodes.values() if n.state == "connected"), default=self._clock())
        wait = seen + MAX_MISSED_HEARTBEATS * self.heartbeat_seconds - self._clock()
        return max(wait, self.heartbeat_seconds / 4)


def _put(queue: asyncio.Queue[pb.NodeCommand], command: pb.NodeCommand) -> bool:
    try:
        queue.put_nowait(command)
    except asyncio.QueueFull:
        return False
    return True
