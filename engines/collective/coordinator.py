"""The server's side of a collective run: it makes ranks of nodes, serves them, and makes new ones when one is lost."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ...core.errors import PeerLostError, RunFailedError, WireError
from ...core.message import Message, Tensor
from ...core.session import ServerSession
from .star_server import KINDS, StarServer
from .store import SharedStore

Transport = Literal["star", "peers"]


@dataclass(frozen=True)
class ReadyNode:
    """What a node says of itself when ranks are formed."""

    steps: tuple[int, ...]
    listens: bool


class Coordinator:
    """Forms ranks and serves them until all have ended.

    Parameters
    ----------
    session : ServerSession
    transport : "auto", "star" or "peers"
    least : int
        Ranks that it takes.
    on_told : callable, optional
        ``on_told(node, message)``: what a rank tells that is neither a collective nor of the forming.
    """

    def __init__(
        self,
        session: ServerSession,
        *,
        transport: Literal["auto", "star", "peers"] = "auto",
        least: int = 1,
        on_told: Callable[[str, Message], None] | None = None,
    ) -> None:
        self._session, self._transport, self._least = session, transport, least
        self._on_told = on_told
        self._generation = 0
        self._members: list[str] = []
        #: Nodes that are lost, until they are taken up again.
        self._gone: set[str] = set()
        self._hub: StarServer | None = None
        self._store = SharedStore(self._say)
        self._final: Mapping[str, Tensor] = {}
        self._results: dict[str, Mapping[str, Any]] = {}
        #: Where each formation began: step, ranks, transport.
        self.formations: list[tuple[int, int, Transport]] = []

    def run(self) -> tuple[Mapping[str, Tensor], dict[str, Mapping[str, Any]]]:
        """Until the ranks have ended; returns what the first of them sent, and each one's last words."""
        while True:
            self._form()
            if self._serve():
                break
        for name in self._members:
            self._tell(name, "done")
        return self._final, self._results

    # -- forming --------------------------------------------------------------------------------------------------

    def _form(self) -> None:
        self._readmit(self._least)
        ready = self._all_ready()
        self._members = sorted(ready, key=self._order)
        self._generation += 1
        transport = self._chosen(ready)
        step = max((step for told in ready.values() for step in told.steps), default=0)
        holders = [rank for rank, name in enumerate(self._members) if step in ready[name].steps]
        self._hub = StarServer(self._members, self._generation, self._send)
        self._store.clear()
        whole = len(holders) in (0, len(self._members))
        for rank, name in enumerate(self._members):
            self._tell(
                name,
                "form",
                generation=self._generation,
                rank=rank,
                names=",".join(self._members),
                step=step,
                source=-1 if whole else holders[0],
                transport=transport,
            )
        self.formations.append((step, len(self._members), transport))
        way = "through the server" if transport == "star" else "node to node"
        self._session.log(f"{len(self._members)} ranks from step {step}, {way}: {', '.join(self._members)}")

    def _all_ready(self) -> dict[str, ReadyNode]:
        """Hear every node that is there; one that is lost meanwhile is left out."""
        ready: dict[str, ReadyNode] = {}
        while True:
            owing = [n for n in self._session.channels if n not in ready and n not in self._gone]
            if not owing:
                if len(ready) >= self._least:
                    return ready
                self._readmit(self._least)
                continue
            try:
                name, message = self._session.receive_any(owing)
            except (PeerLostError, WireError) as error:
                self._drop(error)
                ready.pop(error.name, None)
                continue
            if message.fields.get("what") == "ready":
                ready[name] = _read_ready(message)

    def _chosen(self, ready: Mapping[str, ReadyNode]) -> Transport:
        if self._transport == "star":
            return "star"
        deaf = [name for name, told in ready.items() if not told.listens]
        if not deaf:
            return "peers"
        if self._transport == "peers":
            raise RunFailedError(
                f"node {deaf[0]} may not listen for other nodes",
                hint="farshore node join --peer-listen IFACE, or transport=star",
            )
        return "star"

    def _order(self, name: str) -> int:
        return self._session.run.nodes.index(name)

    # -- serving --------------------------------------------------------------------------------------------------

    def _serve(self) -> bool:
        """Until all have ended (True), or the ranks must change (False)."""
        assert self._hub is not None
        ended: set[str] = set()
        kept: dict[str, int] = {}
        while len(ended) < len(self._members):
            self._session.check_cancelled()
            try:
                name, message = self._session.receive_any(self._members)
            except (PeerLostError, WireError) as error:
                self._drop(error)
                if error.name in ended or error.name not in self._members:
                    self._members = [m for m in self._members if m != error.name]
                    continue
                self._dissolve(f"node {error.name} was lost", [m for m in self._members if m != error.name])
                return False
            what = message.fields.get("what")
            if message.kind in KINDS:
                self._take(name, message)
            elif what == "store":
                self._store.take(name, message)
            elif what == "moved":
                self._moved(name, message)
            elif what == "kept":
                kept[name] = message.step
                if len(kept) == len(self._members) and self._boundary(kept):
                    return False
            elif what == "end":
                ended.add(name)
                self._ended(name, message)
            elif self._on_told is not None:
                self._on_told(name, message)
        return True

    def _take(self, name: str, message: Message) -> None:
        assert self._hub is not None
        try:
            self._hub.take(self._members.index(name), message)
        except RunFailedError as error:
            for member in self._members:
                self._tell(member, "failed", why=error.message)
            raise

    def _moved(self, name: str, message: Message) -> None:
        for kind, size in message.fields.items():
            if kind in KINDS and isinstance(size, int) and 0 <= size < 1 << 50:
                self._session.account(name, kind, message.step, size)

    def _boundary(self, kept: dict[str, int]) -> bool:
        """All have kept a step: go on, or (True) form anew with those who have come."""
        if len(set(kept.values())) > 1:
            raise RunFailedError(f"the ranks are at different steps: {kept}")
        (step,) = set(kept.values())
        kept.clear()
        self._session.save_checkpoint(step, {}, {"generation": self._generation})
        if came := self._readmit():
            self._dissolve(f"node {', '.join(came)} came back", self._members)
            return True
        for name in self._members:
            self._tell(name, "go")
        return False

    def _ended(self, name: str, message: Message) -> None:
        self._results[name] = {k: v for k, v in message.fields.items() if k != "what"}
        if message.tensors:
            self._final = message.tensors

    def _dissolve(self, why: str, left: Sequence[str]) -> None:
        self._session.log(f"{why}: the ranks are formed anew")
        for name in left:
            self._tell(name, "lost", why=why)

    def _readmit(self, least: int = 0) -> list[str]:
        came = self._session.readmit(least)
        self._gone -= set(came)
        return came

    # -- talking --------------------------------------------------------------------------------------------------

    def _drop(self, error: PeerLostError | WireError) -> None:
        self._session.log(str(error))
        if isinstance(error, WireError):
            self._session.dismiss(error.name, str(error))
        self._gone.add(error.name)

    def _tell(self, name: str, what: str, **fields: Any) -> None:
        self._say(name, Message("control", fields={"what": what, **fields}))

    def _send(self, rank: int, message: Message) -> None:
        self._say(self._members[rank], message)

    def _say(self, name: str, message: Message) -> None:
        """Send; a node that is gone is noticed when it is heard next."""
        try:
            self._session.channels[name].send(message)
        except PeerLostError:
            self._session.log(f"node {name} was lost while it was told something")


def _read_ready(message: Message) -> ReadyNode:
    steps = tuple(int(step) for step in str(message.fields.get("steps", "")).split(",") if step.isdigit())
    return ReadyNode(steps, bool(message.fields.get("listens", False)))
