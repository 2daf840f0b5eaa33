"""The node side of a collective run: joins one group of ranks after the other until the work is done."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

from ...core.control import Control
from ...core.errors import FarshoreError, WireError
from ...core.message import Array
from ...core.session import NodeSession
from ...models.torch_internals import HashStore
from . import gloo_backend
from .protocol import Done, End, Form, Go, Kept, Lost, Moved, Ready, Transport
from .star_backend import register
from .star_client import RanksChangedError, StarClient
from .store import ChannelStore

#: How long to wait for the server's verdict after a gloo collective failed, in seconds. A rank may notice a lost peer
#: before the server does.
SERVER_NOTICE_SECONDS = 30.0
#: gloo's timeout of a collective, longer than any evaluation on one rank. The server knows which nodes are lost and
#: ends their group, so that nothing else depends on it.
PEER_TIMEOUT = datetime.timedelta(hours=12)


@dataclass
class ElasticGroup:
    """One generation of ranks, and the step at which they start.

    A context manager: the default process group exists inside. When a rank is lost or a node rejoins, the code inside
    is left by an exception, which the context manager swallows (:attr:`changed` is then True).

    Attributes
    ----------
    rank : int
        This node's rank.
    names : tuple of str
        The nodes by rank.
    step : int
        Training step to start at.
    has_checkpoint : bool
        Whether this node holds a checkpoint of ``step``.
    source : int
        A rank that holds the checkpoint, if others lack it; -1 if all have it or none exists.
    transport : {"star", "peers"}
    changed : bool
        Whether the group was left because the ranks changed.
    """

    rank: int
    names: tuple[str, ...]
    step: int
    has_checkpoint: bool
    source: int
    transport: Transport
    _client: StarClient
    _session: NodeSession
    _saved_steps: list[int]
    changed: bool = field(default=False)

    @property
    def size(self) -> int:
        """Number of ranks."""
        return len(self.names)

    def __enter__(self) -> ElasticGroup:
        if self.transport == "star":
            register(self._client)
            dist.init_process_group("star", store=HashStore(), rank=self.rank, world_size=self.size)
        else:
            gloo_backend.register()
            self._client.on_abort = gloo_backend.abort_connections
            store = ChannelStore(self._client)
            dist.init_process_group("peers", store=store, rank=self.rank, world_size=self.size, timeout=PEER_TIMEOUT)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is not None and self.transport == "peers":
            gloo_backend.abort_connections()  # ranks that wait for this one fail now instead of after the timeout
        dist.destroy_process_group()
        if error is None:
            return False
        # A failed collective raises a RuntimeError of torch. The cause is what the server reports, maybe a bit later.
        peers_failed = self.transport == "peers" and isinstance(error, RuntimeError)
        cause = self._client.wait_for_error(SERVER_NOTICE_SECONDS) if peers_failed else self._client.error
        self.changed = isinstance(error, RanksChangedError) or isinstance(cause, RanksChangedError)
        failed = isinstance(error, Exception) and not isinstance(error, FarshoreError)
        if failed and isinstance(cause, FarshoreError) and not self.changed:
            raise cause from error
        return self.changed

    def set_step(self, step: int) -> None:
        """Account the following collectives to a training step."""
        if step != self._client.step:
            self._report_peer_traffic()
        self._client.step = step

    def _report_peer_traffic(self) -> None:
        """Send the server the bytes that this node sent to other nodes in the step that ends."""
        if counters := gloo_backend.drain_counters():
            self._client.send(Moved({kind: one.bytes for kind, one in counters.items()}))

    def load_checkpoint(self) -> tuple[dict[str, Array], dict[str, Any]]:
        """Load this node's checkpoint of :attr:`step`."""
        return self._session.load_checkpoint(self.step)

    def checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Save a checkpoint and wait until all ranks have saved theirs.

        Raises
        ------
        RanksChangedError
            Nodes rejoined: a new group forms, which starts from this checkpoint.
        """
        self.set_step(step)
        self._session.save_checkpoint(step, tensors, meta)
        self._saved_steps[:] = [*self._saved_steps, step][-2:]
        self._client.send(Kept())
        self._wait_for(Go)

    def send(self, control: Control, tensors: Mapping[str, torch.Tensor] | None = None) -> None:
        """Send a message of the engine above to the server program, accounted to the current step."""
        self._client.send(control, tensors)

    def finish(self, tensors: Mapping[str, torch.Tensor], end: End) -> None:
        """Report that this rank has finished, with its result if it has one; wait for all ranks.

        Raises
        ------
        RanksChangedError
            A rank was lost before it had finished: a new group forms.
        """
        self._report_peer_traffic()
        self._client.send(end, tensors)
        self._wait_for(Done)

    def _wait_for(self, answer: type[Go] | type[Done]) -> None:
        received = self._client.receive_control()
        if isinstance(received, Lost):
            raise RanksChangedError(received.why)
        if not isinstance(received, answer):
            raise WireError(f"the server: expected '{answer.what}', got '{received.what}'")


def elastic_groups(session: NodeSession, listen: str = "") -> Iterator[ElasticGroup]:
    """Yield the groups that a node is a member of, one after the other, until its work is done.

    Parameters
    ----------
    session : NodeSession
    listen : str
        Network interface on which other nodes may connect to this one; empty: they may not.
    """
    client = StarClient(session.channel)
    saved_steps = [] if session.resume_step is None else [session.resume_step]
    if listen:
        os.environ["GLOO_SOCKET_IFNAME"] = listen
    while True:
        client.send(Ready(tuple(saved_steps), listens=bool(listen)))
        group = _make_group(_receive_form(client), client, session, saved_steps)
        yield group
        if not group.changed:
            return


def _receive_form(client: StarClient) -> Form:
    # The end of the last group has been noticed already, if a collective failed.
    while isinstance(received := client.receive_control(), Lost):
        pass
    if not isinstance(received, Form):
        raise WireError(f"the server: expected 'form', got '{received.what}'")
    return received


def _make_group(form: Form, client: StarClient, session: NodeSession, saved_steps: list[int]) -> ElasticGroup:
    return ElasticGroup(
        rank=form.rank,
        names=form.names,
        step=form.step,
        has_checkpoint=form.step in saved_steps,
        source=form.source,
        transport=form.transport,
        _client=client,
        _session=session,
        _saved_steps=saved_steps,
    )
