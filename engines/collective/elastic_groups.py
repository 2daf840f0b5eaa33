"""A node's side of a collective run: it becomes a rank, and another one when the ranks are formed anew."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from ...core.errors import RunFailedError
from ...core.message import Array, Message, Scalar
from ...core.session import NodeSession
from . import gloo_backend
from .star_backend import register
from .star_client import RanksChangedError, StarClient
from .store import ChannelStore
from .tensors import to_wire

#: Seconds in which the server notices what a rank has seen before it: that a peer is gone.
NOTICE = 30.0
#: Longest that a rank waits for another, node to node; a star needs none, the server knows who is lost.
PATIENCE = datetime.timedelta(minutes=5)


@dataclass
class ElasticGroup:
    """The ranks as they are now, and where they begin.

    Use it as a context: the default process group exists inside. When ranks are lost or come, whatever runs inside is
    left by an exception that ends here.

    Attributes
    ----------
    rank, names : int, sequence of str
        This node's rank, and the nodes by rank.
    step : int
        Training step to begin at.
    held : bool
        Whether this node has a checkpoint of that step.
    source : int
        A rank that has it, where some have not; -1 where all have it or nobody needs one.
    """

    rank: int
    names: tuple[str, ...]
    step: int
    held: bool
    source: int
    transport: Literal["star", "peers"]
    _line: StarClient
    _session: NodeSession
    _saved: list[int]
    changed: bool = field(default=False)

    @property
    def size(self) -> int:
        """How many ranks there are."""
        return len(self.names)

    def __enter__(self) -> ElasticGroup:
        if self.transport == "star":
            register(self._line)
            dist.init_process_group("star", store=HashStore(), rank=self.rank, world_size=self.size)
        else:
            gloo_backend.register()
            self._line.on_over = gloo_backend.hang_up
            store = ChannelStore(self._line)
            dist.init_process_group("peers", store=store, rank=self.rank, world_size=self.size, timeout=PATIENCE)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None and self.transport == "peers":
            gloo_backend.hang_up()  # whoever waits for this rank shall not
        dist.destroy_process_group()
        if error is None:
            return False
        # A collective fails with an error of torch's own: the line knows the reason, or will when the server does.
        peers_failed = self.transport == "peers" and isinstance(error, RuntimeError)
        broken = self._line.verdict(NOTICE) if peers_failed else self._line.broken
        self.changed = isinstance(error, RanksChangedError) or isinstance(broken, RanksChangedError)
        if isinstance(broken, RunFailedError) and not isinstance(error, RunFailedError):
            raise broken from error
        return self.changed

    def at(self, step: int) -> None:
        """Tell which step collectives belong to from now on."""
        if step != self._line.step:
            self._settle()
        self._line.step = step

    def _settle(self) -> None:
        """Tell what this node sent to others in the step that is over; the server sees it only so."""
        if moved := gloo_backend.taken():
            self._line.tell("moved", None, **{kind: one.bytes for kind, one in moved.items()})

    def load(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """This node's checkpoint of :attr:`step`."""
        return self._session.load_checkpoint(self.step)

    def boundary(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Save a checkpoint, and go on when all have.

        Raises
        ------
        RanksChangedError
            Nodes have come back: the ranks are formed anew, from here.
        """
        self.at(step)
        self._session.save_checkpoint(step, tensors, meta)
        self._saved[:] = [*self._saved, step][-2:]
        self._line.tell("kept")
        if self._line.hear().fields.get("what") != "go":
            raise RanksChangedError("the ranks are formed anew")

    def tell(self, what: str, **fields: Scalar) -> None:
        """Tell the server program something; it knows ``what``."""
        self._line.tell(what, None, **fields)

    def end(self, tensors: Mapping[str, torch.Tensor], **fields: Scalar) -> None:
        """Say that this rank has done its work, with the result if it is to give one; waits for all."""
        self._settle()
        self._line.tell("end", {name: to_wire(tensor) for name, tensor in tensors.items()}, **fields)
        if self._line.hear().fields.get("what") != "done":
            raise RanksChangedError("the ranks are formed anew")


def elastic_groups(session: NodeSession, listen: str = "") -> Iterator[ElasticGroup]:
    """The ranks that a node is part of, one after the other, until its work is done.

    Parameters
    ----------
    listen : str
        Network interface on which other nodes may reach this one; empty: none.
    """
    line = StarClient(session.channel)
    saved = [] if session.resume_step is None else [session.resume_step]
    if listen:
        os.environ["GLOO_SOCKET_IFNAME"] = listen
    while True:
        line.tell("ready", steps=",".join(map(str, saved)), listens=bool(listen))
        said = line.hear()
        while said.fields.get("what") != "form":
            said = line.hear()
        line.begin(int(said.fields["generation"]))
        world = _read(said, line, session, saved)
        yield world
        if not world.changed:
            return


def _read(said: Message, line: StarClient, session: NodeSession, saved: list[int]) -> ElasticGroup:
    fields = said.fields
    step = int(fields["step"])
    return ElasticGroup(
        rank=int(fields["rank"]),
        names=tuple(str(fields["names"]).split(",")),
        step=step,
        held=step in saved,
        source=int(fields["source"]),
        transport="peers" if fields["transport"] == "peers" else "star",
        _line=line,
        _session=session,
        _saved=saved,
    )
