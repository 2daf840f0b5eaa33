"""The :class:`~farshore.core.session.NodeSession` of a node process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import grpc

from ..core.address import proxy_options
from ..core.errors import DataError, RefusedError, RunCancelledError
from ..core.handshake import hello, read_begin
from ..core.node_metrics import metrics_message
from ..core.processes import Json
from ..core.profiles import LinkProfile
from ..core.seeds import Seed
from ..core.session import Code, RunInfo
from ..runs.checkpoints import CheckpointStore
from ..runs.session_state import SessionState
from ..runs.state_store import StateStore
from ..wire.channel import Channel
from ..wire.grpc_attach import Dialer
from ..wire.io import IoThread
from ..wire.shaper import Shaper
from .join import SERVER_NAME

#: Seconds that the server program has to receive the last messages of a finished node program.
_CLOSE_SECONDS = 60.0


class SessionHost(Protocol):
    """The owner of a session: the agent (in the parent process) or an interactive node (in this process)."""

    def listen(self, on_message: Callable[[Json], None]) -> None:
        """Call ``on_message`` with every message from the host, e.g. ``{"type": "cancel"}``."""

    def send(self, message: Json) -> None:
        """Send a message to the host, e.g. ``{"type": "log", "line": …}``. Thread-safe."""


class NodeProcessSession(SessionState):
    """Implements :class:`farshore.core.session.NodeSession`; a context manager that closes the channel.

    Parameters
    ----------
    parameters : dict
        The launch parameters, see :func:`farshore.client.programs.launch_parameters`.
    host : SessionHost
    """

    def __init__(self, parameters: Json, host: SessionHost) -> None:
        self.node = str(parameters["node"])
        self.shard = (int(parameters["shard"][0]), int(parameters["shard"][1]))
        self.role = str(parameters["role"])
        self.peer_interface = str(parameters["peer_interface"])
        self.cache = Path(parameters["home"]) / "cache"
        directory = Path(parameters["home"]) / "runs" / str(parameters["run"])
        self.run = RunInfo(
            id=str(parameters["run"]),
            workload=str(parameters["workload"]),
            seed=Seed(int(parameters["seed"])),
            epoch=int(parameters["epoch"]),
            nodes=tuple(parameters["nodes"]),
            directory=directory,
        )
        self.channel = Channel("server", self.node, "node", epoch=self.run.epoch)
        self.state = StateStore(CheckpointStore(directory / "checkpoints"), directory / "streams")
        self._data = {name: Path(path) for name, path in parameters["data"].items()}
        self._host = host
        self._cancelled = False
        self._accepted = set(map(str, parameters["accept_apps"]))
        self._can_ask = bool(parameters["ask"])
        self._approval: Future[bool] = Future()
        self._io = IoThread("node-io")
        self._dialer = self._make_dialer(parameters)

    def _make_dialer(self, parameters: Json) -> Dialer:
        root = parameters["root"]
        link = LinkProfile.model_validate(parameters["link"])
        address = str(parameters["address"])
        options: list[tuple[str, Any]] = [("grpc.use_local_subchannel_pool", 1), *proxy_options(address)]
        if parameters["pinned"]:
            options.append(("grpc.ssl_target_name_override", SERVER_NAME))
        return Dialer(
            self.channel,
            self._io,
            address,
            str(parameters["ticket"]),
            grpc.ssl_channel_credentials(root.encode()) if root else None,
            options=options,
            on_state=self.log,
            shaper=Shaper(link, self.run.seed.child("node", self.node)) if link != LinkProfile() else None,
        )

    def __enter__(self) -> NodeProcessSession:
        self.run.directory.mkdir(parents=True, exist_ok=True)
        self._host.listen(self._on_message)
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
        self.state.close()

    def handshake(self) -> None:
        """Send the steps of the local checkpoints and receive the step to resume from."""
        self.channel.send(hello(self.state.steps()))
        self.begin_from(read_begin(self.channel.receive()))

    def data(self, name: str) -> Path:
        """Return this node's path of the data set ``name``.

        Raises
        ------
        DataError
            The node has no such data set.
        """
        try:
            return self._data[name]
        except KeyError:
            known = ", ".join(sorted(self._data)) or "none"
            raise DataError(
                f"node {self.node} has no data set '{name}' (it has: {known})",
                hint=f"start it with --data {name}=PATH",
            ) from None

    def admit(self, code: Code) -> None:
        """Raise :class:`RefusedError` unless the node's operator has approved ``code``; may block on a question."""
        if code.digest in self._accepted:
            return
        if self._can_ask:
            self._host.send({"type": "ask", "digest": code.digest, "what": code.what})
            if self._approval.result():
                return
        raise RefusedError(
            f"node {self.node} does not accept {code.what} with the hash {code.digest}",
            hint=f"its operator can: farshore node join … --accept-apps {code.digest}",
        )

    def metrics(self, step: int, **values: float) -> None:
        """Record named metrics of this node at ``step``."""
        self.channel.send(metrics_message(step, values))

    def check_cancelled(self) -> None:
        """Raise :class:`RunCancelledError` if the run has been cancelled."""
        if self._cancelled:
            raise RunCancelledError(f"run {self.run.id}: the server stopped it")

    def log(self, message: str) -> None:
        """Write a line to the run's log."""
        self._host.send({"type": "log", "line": message})

    def _on_message(self, message: Json) -> None:
        if message.get("type") == "answer" and not self._approval.done():
            self._approval.set_result(bool(message["accepted"]))
        if message.get("type") == "cancel":
            self._cancelled = True
            if not self._approval.done():
                self._approval.set_exception(RunCancelledError(f"run {self.run.id}: the server stopped it"))
            self.channel.fail(RunCancelledError(f"run {self.run.id}: the server stopped it"))
