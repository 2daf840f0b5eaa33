"""The server side of a collective run: forms a group of ranks, serves it, and forms a new one when a rank is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Literal, TypeVar

from ...core.control import Control, describe
from ...core.errors import RunFailedError, WireError
from ...core.message import Message, Tensor
from ...core.session import ServerSession
from ..requests import Answer, Failure, receive, refuse, send
from .protocol import FROM_RANK, KINDS, Done, End, Failed, Form, Go, Kept, Lost, Moved, Ready, StoreRequest, Transport
from .star_server import StarServer
from .store import SharedStore

Ended = TypeVar("Ended", bound=End)

#: Maximum number of bytes that a rank may report in one message.
_MAX_BYTES = 1 << 50


class Coordinator(Generic[Ended]):
    """Forms groups of ranks and serves them until all ranks have finished.

    Each group is a *generation*. When a rank is lost, or a restarted node rejoins at a checkpoint, the remaining ranks
    form the next generation and continue from the newest checkpoint that any of them holds. A node that sends an
    invalid message is dismissed, as if it was lost.

    Parameters
    ----------
    session : ServerSession
    end : type of End
        Message with which a rank ends, with the fields of the engine above.
    transport : {"auto", "star", "peers"}
    min_ranks : int
        With fewer nodes the run waits for lost ones to rejoin.
    on_message : callable, optional
        ``on_message(node, message)``: called with every message that is not of this engine; it raises
        :class:`WireError` if the message is invalid. By default, every such message is.
    """

    def __init__(
        self,
        session: ServerSession,
        end: type[Ended],
        *,
        transport: Literal["auto", "star", "peers"] = "auto",
        min_ranks: int = 1,
        on_message: Callable[[str, Message], None] | None = None,
    ) -> None:
        self._session, self._end_type, self._transport, self._min_ranks = session, end, transport, min_ranks
        self._on_message = on_message or _refuse_message
        self._generation = 0
        #: Nodes of the current group by rank.
        self._names: tuple[str, ...] = ()
        #: Those that are not lost.
        self._members: list[str] = []
        #: Lost nodes that have not rejoined.
        self._lost: set[str] = set()
        self._star: StarServer | None = None
        self._store = SharedStore(self._send)
        self._final: Mapping[str, Tensor] = {}
        self._results: dict[str, Ended] = {}
        #: Members of the current group that have finished.
        self._finished: set[str] = set()
        #: Step of the checkpoint that a member has saved, until all have saved theirs.
        self._checkpoints: dict[str, int] = {}
        #: First step, number of ranks and transport of each generation.
        self.formations: list[tuple[int, int, Transport]] = []

    def run(self) -> tuple[Mapping[str, Tensor], dict[str, Ended]]:
        """Serve the run until all ranks have finished.

        Returns
        -------
        final : Mapping
            Tensors of rank 0's ``end`` message: its model.
        results : dict
            Each node's ``end`` message, by node.
        """
        while True:
            self._form()
            if self._serve():
                break
        for name in self._members:
            self._send_control(name, Done())
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
        self._names = tuple(self._members)
        self._star = StarServer(self._names, self._generation, self._send_to_rank)
        self._store.clear()
        self._finished, self._checkpoints = set(), {}
        source = -1 if len(holders) in (0, len(self._names)) else holders[0]
        for rank, name in enumerate(self._names):
            self._send_control(name, Form(self._generation, rank, self._names, step, source, transport))
        self.formations.append((step, len(self._members), transport))
        route = "through the server" if transport == "star" else "node to node"
        self._session.log(f"{len(self._members)} ranks from step {step}, {route}: {', '.join(self._members)}")

    def _collect_ready(self) -> dict[str, Ready]:
        """Wait for a ``ready`` message from every connected node; drop nodes that are lost meanwhile."""
        ready: dict[str, Ready] = {}
        while True:
            pending = [n for n in self._session.channels if n not in ready and n not in self._lost]
            if not pending:
                if len(ready) >= self._min_ranks:
                    return ready
                self._readmit(self._min_ranks)
                continue
            outcome = self._receive(pending)
            if isinstance(outcome, Failure):
                self._mark_lost(outcome)
                continue
            name, message = outcome.node, outcome.message
            if not Ready.matches(message) and name in self._members:
                continue  # sent in the group that has ended
            try:
                ready[name] = Ready.read(message, f"node {name}")
            except WireError as error:
                self._mark_lost(refuse(self._session, name, error))

    def _choose_transport(self, ready: Mapping[str, Ready]) -> Transport:
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
        while len(self._finished) < len(self._members):
            self._session.check_cancelled()
            outcome = self._receive(self._members)
            if isinstance(outcome, Answer):
                try:
                    if self._handle(outcome.node, outcome.message):
                        return False
                    continue
                except WireError as error:
                    outcome = refuse(self._session, outcome.node, error)
            self._mark_lost(outcome)
            others = [member for member in self._members if member != outcome.node]
            if outcome.node not in self._finished:
                self._end_group(f"node {outcome.node} was lost", others)
                return False
            self._members = others
            self._finished.discard(outcome.node)
        return True

    def _handle(self, name: str, message: Message) -> bool:
        """Process a rank's message; True if a new group must be formed.

        Raises
        ------
        WireError
            The message is invalid, or not one that the rank may send now.
        RunFailedError
            The ranks do not do the same.
        """
        if message.kind in KINDS:
            self._handle_collective(name, message)
        elif self._end_type.matches(message):
            self._record_end(name, message)
        elif not FROM_RANK.accepts(message):
            self._on_message(name, message)
        else:
            match FROM_RANK.read(message, f"node {name}"):
                case StoreRequest() as request:
                    self._store.handle(name, message.micro, request)
                case Moved(sizes=sizes):
                    self._record_peer_traffic(name, message.step, sizes)
                case Kept():
                    return self._record_checkpoint(name, message.step)
                case Ready():
                    raise WireError(f"node {name}: 'ready' from a rank of the current group")
        return False

    def _handle_collective(self, name: str, message: Message) -> None:
        assert self._star is not None
        try:
            self._star.handle(self._names.index(name), message)
        except RunFailedError as error:
            for member in self._members:
                self._send_control(member, Failed(error.message))
            raise

    def _record_peer_traffic(self, name: str, step: int, sizes: Mapping[str, int]) -> None:
        for kind, size in sizes.items():
            if kind not in KINDS or not 0 <= size < _MAX_BYTES:
                raise WireError(f"node {name}: invalid 'moved' message: {size} bytes of '{kind[:40]}'")
        for kind, size in sizes.items():
            self._session.account(name, kind, step, size)

    def _record_checkpoint(self, name: str, step: int) -> bool:
        """Save the server's checkpoint once all ranks have saved theirs; True if rejoined nodes need a new group."""
        if name in self._checkpoints or name in self._finished:
            raise WireError(f"node {name}: 'kept' from a rank that waits for the others")
        self._checkpoints[name] = step
        if len(self._checkpoints) < len(self._members):
            return False
        if len(set(self._checkpoints.values())) > 1:
            raise RunFailedError(f"ranks saved checkpoints of different steps: {self._checkpoints}")
        self._checkpoints.clear()
        self._session.save_checkpoint(step, {}, {"generation": self._generation})
        if rejoined := self._readmit():
            self._end_group(f"node {', '.join(rejoined)} rejoined", self._members)
            return True
        for member in self._members:
            self._send_control(member, Go())
        return False

    def _record_end(self, name: str, message: Message) -> None:
        if name in self._finished:
            raise WireError(f"node {name}: 'end' from a rank that has finished")
        self._results[name] = self._end_type.read(message, f"node {name}")
        self._finished.add(name)
        if message.tensors:
            self._final = message.tensors

    def _end_group(self, reason: str, remaining: Sequence[str]) -> None:
        self._session.log(f"{reason}: forming a new group of ranks")
        for name in remaining:
            self._send_control(name, Lost(reason))

    def _readmit(self, least: int = 0) -> list[str]:
        rejoined = self._session.readmit(least)
        self._lost.difference_update(rejoined)
        self._members = [member for member in self._members if member not in rejoined]
        return rejoined

    # -- receiving and sending ------------------------------------------------------------------------------------

    def _receive(self, nodes: Sequence[str]) -> Answer | Failure:
        outcome = receive(self._session, nodes)
        assert outcome is not None, "there is no deadline"
        return outcome

    def _mark_lost(self, failure: Failure) -> None:
        self._session.log(failure.reason)
        self._lost.add(failure.node)

    def _send_control(self, name: str, control: Control) -> None:
        self._send(name, control.message())

    def _send_to_rank(self, rank: int, message: Message) -> None:
        self._send(self._names[rank], message)

    def _send(self, name: str, message: Message) -> None:
        """Send to a node. A lost node is only logged: the next receive raises the error."""
        if send(self._session, name, message) is not None:
            self._session.log(f"node {name} was lost while a {message.kind} message was sent to it")


def _refuse_message(name: str, message: Message) -> None:
    raise WireError(f"node {name}: unexpected {describe(message)}")
