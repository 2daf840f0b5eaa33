"""A node program's view of its run, in the node process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import grpc

from ..core.errors import DataError, RefusedError, RunCancelledError
from ..core.handshake import hello, read_begin
from ..core.message import Array
from ..core.processes import Json
from ..core.profiles import LinkProfile
from ..core.seeds import Seed
from ..core.session import Code, RunInfo
from ..runs.checkpoints import CheckpointStore
from ..wire.channel import Channel
from ..wire.grpc_attach import Dialer
from ..wire.io import IoThread
from ..wire.shaper import Shaper
from .join import SERVER_NAME

#: Seconds that the server program gets to take what this one sent before it ended.
_CLOSE_SECONDS = 60.0


class Agent(Protocol):
    """What a session needs of whoever started it: the agent's process, or an interactive node in this one."""

    def listen(self, on_message: Callable[[Json], None]) -> None:
        """Have ``on_message`` called with every message, e.g. ``{"type": "cancel"}``."""

    def send(self, message: Json) -> None:
        """Tell it something, e.g. ``{"type": "log", "line": …}``; from any thread."""


class NodeProcessSession:
    """Implements :class:`farshore.core.session.NodeSession`; a context manager that closes the channel.

    Parameters
    ----------
    specification : dict
        What the agent was told, and the node's own settings; see ``client/programs.py``.
    parent : Agent
    """

    def __init__(self, specification: Json, parent: Agent) -> None:
        self.node = str(specification["node"])
        self.shard = (int(specification["shard"][0]), int(specification["shard"][1]))
        self.peer_interface = str(specification["peer_interface"])
        self.resume_step: int | None = None
        directory = Path(specification["home"]) / "runs" / str(specification["run"])
        self.run = RunInfo(
            id=str(specification["run"]),
            workload=str(specification["workload"]),
            seed=Seed(int(specification["seed"])),
            epoch=int(specification["epoch"]),
            nodes=tuple(specification["nodes"]),
            directory=directory,
        )
        self.channel = Channel("server", self.node, "node", epoch=self.run.epoch)
        self._checkpoints = CheckpointStore(directory / "checkpoints")
        self._data = {name: Path(path) for name, path in specification["data"].items()}
        self._parent = parent
        self._cancelled = False
        self._accepted = set(map(str, specification["accept_apps"]))
        self._may_ask = bool(specification["ask"])
        self._answer: Future[bool] = Future()
        self._io = IoThread("node-io")
        self._dialer = self._make_dialer(specification)

    def _make_dialer(self, specification: Json) -> Dialer:
        root = specification["root"]
        link = LinkProfile.model_validate(specification["link"])
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1)]
        if specification["pinned"]:
            options.append(("grpc.ssl_target_name_override", SERVER_NAME))
        return Dialer(
            self.channel,
            self._io,
            str(specification["address"]),
            str(specification["ticket"]),
            grpc.ssl_channel_credentials(root.encode()) if root else None,
            options=options,
            on_state=self.log,
            shape=Shaper(link, self.run.seed.child("node", self.node)) if link != LinkProfile() else None,
        )

    def __enter__(self) -> NodeProcessSession:
        self.run.directory.mkdir(parents=True, exist_ok=True)
        self._parent.listen(self._told)
        self._io.start()
        self._dialer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.channel.close(_CLOSE_SECONDS)
            self._dialer.join(_CLOSE_SECONDS)
        self._io.stop()

    def agree(self) -> None:
        """Tell the server program which checkpoints are here, and hear where to begin."""
        self.channel.send(hello(self._checkpoints.steps()))
        self.resume_step = read_begin(self.channel.receive())

    def data(self, name: str) -> Path:
        """This node's own path of a data set."""
        try:
            return self._data[name]
        except KeyError:
            known = ", ".join(sorted(self._data)) or "none"
            raise DataError(
                f"node {self.node} has no data set '{name}' (it has: {known})",
                hint=f"start it with --data {name}=PATH",
            ) from None

    def admit(self, code: Code) -> None:
        """Ask whether code that came with the run may be executed here; its operator may take a while to answer."""
        if code.digest in self._accepted:
            return
        if self._may_ask:
            self._parent.send({"type": "ask", "digest": code.digest, "what": code.what})
            if self._answer.result():
                return
        raise RefusedError(
            f"node {self.node} does not accept {code.what} with the hash {code.digest}",
            hint=f"its operator can: farshore node join … --accept-apps {code.digest}",
        )

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        """Write this side's state after ``step``; the two newest are kept."""
        self._checkpoints.save(step, tensors, meta)

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        """Read what :meth:`save_checkpoint` wrote."""
        return self._checkpoints.load(step)

    def check_cancelled(self) -> None:
        """Raise :class:`RunCancelledError` when the run has to end."""
        if self._cancelled:
            raise RunCancelledError(f"run {self.run.id}: the server stopped it")

    def log(self, message: str) -> None:
        """Write a line to the run's log."""
        self._parent.send({"type": "log", "line": message})

    def _told(self, message: Json) -> None:
        if message.get("type") == "answer" and not self._answer.done():
            self._answer.set_result(bool(message["accepted"]))
        if message.get("type") == "cancel":
            self._cancelled = True
            if not self._answer.done():
                self._answer.set_exception(RunCancelledError(f"run {self.run.id}: the server stopped it"))
            self.channel.fail(RunCancelledError(f"run {self.run.id}: the server stopped it"))
