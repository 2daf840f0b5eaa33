"""The contract between workloads and the platform: two programs per run, and the sessions that they see.

A workload is a :class:`Workload`: a configuration model and two blocking functions, the server program and the node
program. The platform (processes over gRPC, or threads of one process) gives each a session. Neither program can tell
which of them it runs on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, overload

from pydantic import BaseModel

from .expectations import Expected
from .message import Array, Message
from .nodes import NodeChange, NodeInfo
from .seeds import Seed


class Channel(Protocol):
    """An ordered, reliable conversation with one peer: no duplicates, no gaps, no reordering."""

    @property
    def peer(self) -> str:
        """Name of the node (on the server's side) or ``server`` (on a node's side)."""

    def send(self, message: Message, timeout: float | None = None) -> None:
        """Queue a message; blocks while the window of unacknowledged bytes is full.

        Raises
        ------
        PeerLostError
            The other program is gone for good in this epoch.
        TimeoutError
            There was no room within ``timeout`` seconds; nothing was queued.
        """

    def publish(self, key: str, message: Message) -> None:
        """Queue a message that supersedes an earlier one of the same key; never blocks.

        Of the messages published under one key, a receiver gets the newest that has arrived: an older one is dropped
        if it has not left yet, or was not received. Published messages are not reordered against others.

        Raises
        ------
        PeerLostError
            The other program is gone for good in this epoch.
        """

    def receive(self, timeout: float | None = None) -> Message:
        """Return the next message; blocks.

        Raises
        ------
        PeerLostError
            The other program is gone for good in this epoch.
        TimeoutError
            Nothing came within ``timeout`` seconds.
        """

    def expect(self, kinds: Mapping[str, Expected], *, only: bool = False) -> None:
        """Declare what messages contain, for arrivals at this end; replaces an earlier declaration.

        What does not conform is refused before it is decoded: at the server, the node's connection ends with a
        :class:`WireError`, and its channel after repeated violations; on a node, :meth:`receive` raises the error.
        Without a declaration, a bound relative to the received bytes applies (see docs/wire.md), to what is sent too:
        declare a message that exceeds it at both ends.

        Parameters
        ----------
        kinds : Mapping[str, Expected]
            By kind of message.
        only : bool
            Refuse messages of other kinds.
        """


class RecordStream(Protocol):
    """Records that were appended to a stream of this side, oldest first; see :meth:`Session.append`."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[dict[str, Array]]: ...

    def read(self, index: int) -> dict[str, Array]:
        """The record at ``index``, from 0.

        Raises
        ------
        IndexError
            There is no such record.
        StorageError
            It is damaged.
        """


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What both programs know of their run.

    Attributes
    ----------
    epoch : int
        Restart epoch: 0 at first, higher after each restart of this program.
    nodes : tuple of str
        The cohort that the run began with, in order.
    directory : Path
        This side's directory of the run.
    """

    id: str
    workload: str
    seed: Seed
    epoch: int
    nodes: tuple[str, ...]
    directory: Path


@dataclass(frozen=True, slots=True)
class Code:
    """Code that comes with a run.

    Attributes
    ----------
    digest : str
        SHA-256, hexadecimal: operators accept code by it.
    what : str
        A description: "a Flower app".
    """

    digest: str
    what: str


class Session(Protocol):
    """What both sides share.

    Checkpoints hold this side's state only. Both sides save the same steps; on a restart the platform finds the newest
    step that all of them still hold (each keeps two) and gives it as ``resume_step``. If a workload continues without
    lost nodes, the server's newest step counts, and each node begins at its own newest that is not ahead of it.
    """

    @property
    def run(self) -> RunInfo: ...

    @property
    def resume_step(self) -> int | None:
        """Step of the checkpoint to continue from, or None to start from the beginning."""

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Write this side's state after ``step`` atomically (safetensors + JSON); the two newest are kept.

        The records appended so far belong to it: a resume from this step cuts every stream back to its length of now.
        """

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """Read what :meth:`save_checkpoint` wrote.

        Raises
        ------
        StorageError
            It is missing or damaged.
        """

    def append(self, stream: str, tensors: Mapping[str, Array]) -> int:
        """Append a record to one of this side's streams, for state that only grows; returns the record's index.

        Raises
        ------
        StorageError
            The disk refuses it, or the name is not one of letters, digits, ``_``, ``-`` and ``.``.
        """

    def stream(self, name: str) -> RecordStream:
        """A stream of this side, for reading; empty if nothing was appended."""

    def admit(self, code: Code) -> None:
        """Check that code which came with the run may be executed here; to be called before any of it is.

        Raises
        ------
        RefusedError
            The operator of this machine has not accepted it.
        """

    def check_cancelled(self) -> None:
        """Raise :class:`RunCancelledError` if the run was cancelled."""

    def log(self, message: str) -> None:
        """Write a line to the run's log."""


class NodeSession(Session, Protocol):
    """A node program's view of its run."""

    @property
    def node(self) -> str:
        """This node's name."""

    @property
    def role(self) -> str:
        """The role that this node plays; ``node`` where the workload names none."""

    @property
    def channel(self) -> Channel:
        """The conversation with the server program."""

    @property
    def shard(self) -> tuple[int, int]:
        """``(index, count)`` among the nodes of this role: which part of a shared data set this node works on."""

    @property
    def cache(self) -> Path:
        """Folder of this machine for content that is kept between runs, shared by its node programs; may not exist."""

    @property
    def peer_interface(self) -> str:
        """Network interface on which other nodes of the run may reach this one; empty: none of them may."""

    def data(self, name: str) -> Path:
        """This node's own path of the data set ``name``.

        Raises
        ------
        DataError
            The node was not given that data set.
        """

    def metrics(self, step: int, **values: float) -> None:
        """Send named values of this node to the run's metrics; they are in the ledger as the kind ``metrics``."""


class ServerSession(Session, Protocol):
    """The server program's view of its run."""

    @property
    def channels(self) -> Mapping[str, Channel]:
        """One conversation per node of the cohort, in cohort order; nodes that join come last."""

    @property
    def nodes(self) -> Mapping[str, NodeInfo]:
        """Role, shard, labels and profile of each node in :attr:`channels`."""

    def data(self, name: str) -> Path:
        """The server's own path of a data set; same errors as on a node."""

    @overload
    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]: ...

    @overload
    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: Literal[True]
    ) -> tuple[str, Message | NodeChange]: ...

    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: bool = False
    ) -> tuple[str, Message | NodeChange]:
        """The message that arrived first from any of ``nodes`` (None: all), with the node's name; blocks.

        Parameters
        ----------
        changes : bool
            Also return changes of the cohort, as they happen: a loss once all messages of the lost node are taken,
            returns and joins as soon as the node is ready; it is then in :attr:`channels`. Only for workloads that
            continue without lost nodes. Without it, a lost node raises :class:`PeerLostError`, and returned nodes wait
            for :meth:`readmit`.

        Raises
        ------
        PeerLostError
            A node is lost (without ``changes``). The error has the node's ``name``, as has a :class:`WireError` of a
            message that breaks the format.
        TimeoutError
            Nothing came within ``timeout`` seconds.
        RunFailedError
            With ``changes``: no node is left, and none can return or join.
        """

    def dismiss(self, node: str, reason: str) -> None:
        """End the conversation with a node; its program gets the reason. The node may return, see :meth:`readmit`."""

    def readmit(self, least: int = 0) -> list[str]:
        """Use the channels of nodes that have returned or joined; returns their names.

        For workloads that continue when a node is lost. Until this is called, ``channels`` has the lost conversations.
        Blocks while fewer than ``least`` nodes are connected.

        Raises
        ------
        RunFailedError
            Too few are left for good.
        """

    def metrics(self, step: int, **values: float) -> None:
        """Record named values at ``step``; they reach ``metrics.jsonl`` and everyone who follows the run."""

    def account(self, node: str, kind: str, step: int, size: int) -> None:
        """Record ``size`` bytes that a node sent to other nodes, as the node reports; no channel carried them."""

    def traffic(self) -> Mapping[str, int]:
        """Bytes of the run's own messages since this program began: ``dense_up``, ``payload_up``, ``frame_up`` and the
        same ``down``; empty where nothing is recorded.
        """

    def progress(self, done: int, total: int, **values: float | str) -> None:
        """Report how far the run is, for progress bars."""


class Workload(Protocol):
    """A method: a configuration model and two programs. Instances are stateless; all state lives in sessions.

    The server imports the module when a run is submitted, to check its configuration: heavy imports belong inside the
    programs. Optional members, looked up by name:

    ``roles(config) -> Sequence[Role]``
        Roles other than the single default one; see :class:`~farshore.core.nodes.Role`.
    ``nodes_may_join = True``
        Nodes may join a run in progress, where its submitter allows for more nodes than it began with. Needs
        ``on_lost_node = "continue"``.
    ``node_may_open = True``
        A node may open a run for itself alone, with a user's own process as the node program; such a run is not
        restarted.
    ``code(config) -> Code``
        The code that a run brings, so that a server refuses at once what its operator has not accepted.
    ``least_nodes(config) -> int``
        Fewest nodes with which a run is possible; 1 if it is absent. ``farshore sweep`` takes the methods with one role
        that run on one node alone.
    ``sweep_outcome(result, directory) -> Outcome``
        What such a run contributes to a sweep, given its result and its directory; by default its last metrics, and the
        numbers and texts in its result. See :class:`farshore.engines.work_queue.item.Outcome`.
    ``rehearsal(config) -> Rehearsal``
        A short run that sends each kind of message of a run, for estimates; see
        :class:`~farshore.core.traffic_plan.Rehearsal`. Without it and without a plan, an estimate executes the run.
    ``plan(config, setting)``
        What its runs will send, where a rehearsal would cost too much or is not exact; see
        :class:`~farshore.core.traffic_plan.SupportsTrafficPlan`.
    """

    @property
    def name(self) -> str: ...

    @property
    def summary(self) -> str:
        """One line for ``farshore methods``."""

    @property
    def config(self) -> type[BaseModel]:
        """The pydantic model that ``--set key=value`` and YAML files go through."""

    @property
    def on_lost_node(self) -> Literal["restart", "continue"]:
        """``restart``: all programs restart from their common checkpoint. ``continue``: the program handles it."""

    @property
    def uses_torch(self) -> bool:
        """Whether both programs compute with torch; a run is then refused where their versions differ."""

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Data sets that each node must hold: for each of them, the names that will do."""

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Run on the server; returns the run's result, a JSON-able dict."""

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Run on each node of the cohort."""
