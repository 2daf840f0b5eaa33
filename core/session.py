"""The two programs of a run and what they see of it: the contract between methods and engines.

A method is a :class:`Workload`: a configuration and two blocking functions. An engine (real processes over gRPC, or
threads in one process) gives each function a session. Neither program can tell which engine it runs on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from .message import Array, Message
from .seeds import Seed


class Channel(Protocol):
    """An ordered, reliable conversation with one peer; never a duplicate, a gap or a reorder."""

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

    def receive(self, timeout: float | None = None) -> Message:
        """Return the next message; blocks.

        Raises
        ------
        PeerLostError
            The other program is gone for good in this epoch.
        TimeoutError
            Nothing came within ``timeout`` seconds.
        """


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What both programs know of their run."""

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
        SHA-256 of it, hexadecimal: what operators accept it by.
    what : str
        What it is, in words: "a Flower app".
    """

    digest: str
    what: str


class Session(Protocol):
    """What both sides share.

    Checkpoints hold this side's state only. Both sides save the same steps; on a restart the engine finds the highest
    step that all of them still hold (each keeps two) and gives it as ``resume_step``. Where a method goes on without
    lost nodes, the server's newest step counts, and each node begins at the newest of its own that is not behind it.
    """

    @property
    def run(self) -> RunInfo: ...

    @property
    def resume_step(self) -> int | None:
        """Step of the checkpoint to continue from, or None to start afresh."""

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Write this side's state after ``step`` atomically (safetensors + JSON); the two newest are kept."""

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """Read what :meth:`save_checkpoint` wrote.

        Raises
        ------
        StorageError
            It is missing or damaged.
        """

    def admit(self, code: Code) -> None:
        """Ask whether code that came with the run may be executed here; to be called before any of it is.

        Raises
        ------
        RefusedError
            The operator of this machine has not accepted it.
        """

    def check_cancelled(self) -> None:
        """Raise :class:`RunCancelledError` when somebody cancelled the run."""

    def log(self, message: str) -> None:
        """Write a line to the run's log."""


class NodeSession(Session, Protocol):
    """A node program's view of its run."""

    @property
    def node(self) -> str: ...

    @property
    def channel(self) -> Channel:
        """The conversation with the server program."""

    @property
    def shard(self) -> tuple[int, int]:
        """``(index, count)``: which part of a shared data set this node works on."""

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


class ServerSession(Session, Protocol):
    """The server program's view of its run."""

    @property
    def channels(self) -> Mapping[str, Channel]:
        """One conversation per node of the cohort, in cohort order."""

    def data(self, name: str) -> Path:
        """The server's own path of a data set; same errors as on a node."""

    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]:
        """The next message of whichever node sends first; same errors as :meth:`Channel.receive`.

        A lost peer and a message that breaks the format (``WireError``) come with the node's ``name``.
        """

    def dismiss(self, node: str, reason: str) -> None:
        """End the conversation with a node; its program is told why. If it may, it comes back, see :meth:`readmit`."""

    def readmit(self, least: int = 0) -> list[str]:
        """Take up the conversations with nodes whose programs were started again; returns their names.

        For methods that go on when a node is lost. Until this is called, ``channels`` has what such a node said before.
        Blocks while fewer than ``least`` nodes are there.

        Raises
        ------
        RunFailedError
            So few are left for good.
        """

    def metrics(self, step: int, **values: float) -> None:
        """Record named figures at ``step``; they reach ``metrics.jsonl`` and whoever follows the run."""

    def account(self, node: str, kind: str, step: int, size: int) -> None:
        """Write down ``size`` bytes that a node sent to other nodes, as it says; no channel saw them."""

    def traffic(self) -> Mapping[str, int]:
        """Bytes of the run's own messages since this program began: ``dense_up``, ``payload_up``, ``frame_up`` and the
        same ``down``; empty where nobody counts.
        """

    def progress(self, done: int, total: int, **values: float | str) -> None:
        """Tell how far the run is, for progress bars."""


class Workload(Protocol):
    """A method: a configuration model and two programs. Instances are stateless; everything lives in sessions.

    The server imports the module when a run is submitted, to check its configuration: heavy imports belong inside the
    programs. A method with the attribute ``node_may_open = True`` lets a node open a run for itself alone, with a
    user's own process as the node program; such a run is not restarted. One whose runs bring code has a method
    ``code(config) -> Code``, so that a server refuses at once what its operator has not accepted. One that knows
    beforehand what its runs send has a method ``plan``, see :class:`~farshore.core.traffic_plan.Plans`.
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
        """Data sets that each node must hold: for each of them, the names under which it will do."""

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Run on the server; returns the run's result, a JSON-able dict."""

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Run on each node of the cohort."""
