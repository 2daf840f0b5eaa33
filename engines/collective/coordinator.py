"""The server side of a collective run: forms a group of ranks, serves it, and forms a new one when a rank is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...core.errors import RunFailedError
from ...core.message import Message, Tensor
from ...core.session import ServerSession
from ..requests import Failure, receive, send
from .star_server import KINDS, StarServer
from .store import SharedStore

Transport = Literal["star", "peers"]


@dataclass(frozen=True)
class ReadyNode:
    """A node's ``ready`` message: the steps of its checkpoints, and whether other nodes may connect to it."""

    steps: tuple[int, ...]
    listens: bool


class Coordinator:
    """Forms groups of ranks and serves them until all ranks have finished.

    Each group is a *generation*. When a rank is lost, or a restarted node rejoins at a checkpoint, the remaining ranks
    form the next generation and continue from the newest checkpoint that any of them holds.

    Parameters
    ----------
    session : ServerSession
    transport : {"auto", "star", "peers"}
    min_ranks : int
        With fewer nodes the run waits for lost ones to rejoin.
    on_message : callable, optional
        ``on_message(node, message)``: called with every message that the engine itself does not use.
    """

    def __init__(
        self,
        session: ServerSession,
        *,
        transport: Literal["auto", "star", "peers"] = "auto",
        min_ranks: int = 1,
        on_message: Callable[[str, Message], None] | None = None,
    ) -> None:
        self._session, self._transport, self._min_ranks = session, transport, min_ranks
        self._on_message = on_message
        self._generation = 0
        #: Nodes in the order of their ranks.
        self._members: list[str] = []
        #: Lost nodes that have not rejoined.
        self._lost: set[str] = set()
        self._star: StarServer | None = None
        self._store = SharedStore(self._send)
        self._final: Mapping[str, Tensor] = {}
        self._results: dict[str, Mapping[str, Any]] = {}
        #: First step, number of ranks and transport of each generation.
        self.formations: list[tuple[int, int, Transport]] = []

    def run(self) -> tuple[Mapping[str, Tensor], dict[str, Mapping[str, Any]]]:
        """Serve the run until all ranks have finished.

        Returns
        -------
        final : Mapping
            Tensors of rank 0's ``end`` message: its model.
        results : dict
            The fields of each node's ``end`` message, by node.
        """
        while True:
            self._form()
            if self._serve():
                break
        for name in self._members:
            self._send_control(name, "done")
        return self._final, self._results

    # -- forming a group ------------------------------------------------------------------------------------------

    def _form(self) -> None:
        self._readmit(self._min_ranks)
        ready = self._collect_ready()
        self._members = sorted(ready, key=self._cohort_position)
        self._generation += 1
        transport = self._choose_transport(ready)
        step = max((step for node in ready.values() for step in node.steps), default=0)
        holders = [rank for rank, name in enumerate(self._members) if step in ready[name].steps]
        self._star = StarServer(self._members, self._generation, self._send_to_rank)
        self._store.clear()
        all_or_none = len(holders) in (0, len(self._members))
        for rank, name in enumerate(self._members):
            self._send_control(
                name,
                "form",
                generation=self._generation,
                rank=rank,
                names=",".join(self._members),
                step=step,
                source=-1 if all_or_none else holders[0],
                transport=transport,
            )
        self.formations.append((step, len(self._members), transport))
        route = "through the server" if transport == "star" else "node to node"
        self._session.log(f"{len(self._members)} ranks from step {step}, {route}: {', '.join(self._members)}")

    def _collect_ready(self) -> dict[str, ReadyNode]:
        """Wait for a ``ready`` message from every connected node; drop nodes that are lost meanwhile."""
        ready: dict[str, ReadyNode] = {}
        while True:
            pending = [n for n in self._session.channels if n not in ready and n not in self._lost]
            if not pending:
                if len(ready) >= self._min_ranks:
                    return ready
                self._readmit(self._min_ranks)
                continue
            outcome = receive(self._session, pending)
            assert outcome is not None, "there is no deadline"
            if isinstance(outcome, Failure):
                self._mark_lost(outcome)
            elif outcome.message.fields.get("what") == "ready":
                ready[outcome.node] = _read_ready(outcome.message)

    def _choose_transport(self, ready: Mapping[str, ReadyNode]) -> Transport:
        if self._transport == "star":
            return "star"
        not_listening = [name for name, node in ready.items() if not node.listens]
        if not not_listening:
            return "peers"
        if self._transport == "peers":
            raise RunFailedError(
                f"transport=peers: node {not_listening[0]} does not accept connections from other nodes",
                hint="farshore node join --peer-listen IFACE, or transport=star",
            )
        return "star"

    def _cohort_position(self, name: str) -> int:
        return self._session.run.nodes.index(name)

    # -- serving --------------------------------------------------------------------------------------------------

    def _serve(self) -> bool:
        """Serve the current group; True when all ranks have finished, False when a new group must be formed."""
        assert self._star is not None
        finished: set[str] = set()
        checkpoints: dict[str, int] = {}
        while len(finished) < len(self._members):
            self._session.check_cancelled()
            outcome = receive(self._session, self._members)
            assert outcome is not None, "there is no deadline"
            if isinstance(outcome, Failure):
                self._mark_lost(outcome)
                others = [member for member in self._members if member != outcome.node]
                if outcome.node not in finished:
                    self._end_group(f"node {outcome.node} was lost", others)
                    return False
                self._members = others
                continue
            name, message = outcome.node, outcome.message
            what = message.fields.get("what")
            if message.kind in KINDS:
                self._handle_collective(name, message)
            elif what == "store":
                self._store.handle(name, message)
            elif what == "moved":
                self._record_peer_traffic(name, message)
            elif what == "kept":
                checkpoints[name] = message.step
                if len(checkpoints) == len(self._members) and self._finish_checkpoint(checkpoints):
                    return False
            elif what == "end":
                finished.add(name)
                self._record_end(name, message)
            elif self._on_message is not None:
                self._on_message(name, message)
        return True

    def _handle_collective(self, name: str, message: Message) -> None:
        assert self._star is not None
        try:
            self._star.handle(self._members.index(name), message)
        except RunFailedError as error:
            for member in self._members:
                self._send_control(member, "failed", why=error.message)
            raise

    def _record_peer_traffic(self, name: str, message: Message) -> None:
        for kind, size in message.fields.items():
            if kind in KINDS and isinstance(size, int) and 0 <= size < 1 << 50:
                self._session.account(name, kind, message.step, size)

    def _finish_checkpoint(self, checkpoints: dict[str, int]) -> bool:
        """Save the server's checkpoint once all ranks have saved theirs; True if rejoined nodes need a new group."""
        if len(set(checkpoints.values())) > 1:
            raise RunFailedError(f"ranks saved checkpoints of different steps: {checkpoints}")
        (step,) = set(checkpoints.values())
        checkpoints.clear()
        self._session.save_checkpoint(step, {}, {"generation": self._generation})
        if rejoined := self._readmit():
            self._end_group(f"node {', '.join(rejoined)} rejoined", self._members)
            return True
        for name in self._members:
            self._send_control(name, "go")
        return False

    def _record_end(self, name: str, message: Message) -> None:
        self._results[name] = {k: v for k, v in message.fields.items() if k != "what"}
        if message.tensors:
            self._final = message.tensors

    def _end_group(self, reason: str, remaining: Sequence[str]) -> None:
        self._session.log(f"{reason}: forming a new group of ranks")
        for name in remaining:
            self._send_control(name, "lost", why=reason)

    def _readmit(self, least: int = 0) -> list[str]:
        rejoined = self._session.readmit(least)
        self._lost -= set(rejoined)
        return rejoined

    # -- sending --------------------------------------------------------------------------------------------------

    def _mark_lost(self, failure: Failure) -> None:
        self._session.log(failure.reason)
        self._lost.add(failure.node)

    def _send_control(self, name: str, what: str, **fields: Any) -> None:
        self._send(name, Message("control", fields={"what": what, **fields}))

    def _send_to_rank(self, rank: int, message: Message) -> None:
        self._send(self._members[rank], message)

    def _send(self, name: str, message: Message) -> None:
        """Send to a node. A lost node is only logged: the next receive raises the error."""
        if send(self._session, name, message) is not None:
            self._session.log(f"node {name} was lost while a {message.kind} message was sent to it")


def _read_ready(message: Message) -> ReadyNode:
    steps = tuple(int(step) for step in str(message.fields.get("steps", "")).split(",") if step.isdigit())
    return ReadyNode(steps, bool(message.fields.get("listens", False)))
