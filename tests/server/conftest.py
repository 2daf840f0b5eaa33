"""A real server and real nodes, each a process of its own, over TLS on loopback."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import psutil
import pytest

from farshore.client.admin import AdminClient
from farshore.client.agent import AgentOptions
from farshore.client.agent import run as run_agent
from farshore.core.homes import LocalServer
from farshore.proto import control_pb2 as pb
from farshore.server.api import ServeOptions, serve

_SPAWN = multiprocessing.get_context("spawn")
ENDED = {"finished", "failed", "cancelled", "interrupted"}


def _until(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until ``what()`` is true and return it."""
    end = time.monotonic() + seconds
    while not (value := what()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
    return value


def children(pid: int) -> list[psutil.Process]:
    """All descendants of a process."""
    return psutil.Process(pid).children(recursive=True)


@dataclass
class Cloud:
    """One server and its nodes."""

    folder: Path
    options: ServeOptions
    server: BaseProcess | None = None
    agents: dict[str, BaseProcess] = field(default_factory=dict)

    def up(self) -> Cloud:
        (self.options.home / "address").unlink(missing_ok=True)
        self.server = _SPAWN.Process(target=serve, args=(self.options,), name="server")
        self.server.start()
        _until((self.options.home / "address").exists)
        # The same port after a restart, as an operator would have it.
        self.options = replace(self.options, port=int(self.local.address.rpartition(":")[2]))
        return self

    @property
    def local(self) -> LocalServer:
        return LocalServer.read(self.options.home)

    def admin(self) -> AdminClient:
        return AdminClient(self.local.address, self.local.admin_token, self.local.certificate)

    def agent_options(self, name: str, **more: Any) -> AgentOptions:
        with self.admin() as admin:
            token = admin.create_token(valid_seconds=600).token
        home = self.folder / "nodes" / name
        return AgentOptions(address=self.local.address, name=name, home=home, token=token, **more)

    def join(self, *names: str, **more: Any) -> None:
        for name in names:
            options = self.agent_options(name, **more)
            process = _SPAWN.Process(target=run_agent, args=(options,), name=name)
            process.start()
            self.agents[name] = process
        _until(lambda: all(self.node(name).state == "connected" for name in names))

    def node(self, name: str) -> pb.NodeInfo:
        with self.admin() as admin:
            return next((n for n in admin.nodes() if n.name == name), pb.NodeInfo(name=name))

    def submit(self, config: dict[str, Any], *, nodes: tuple[str, ...] = (), count: int = 0) -> str:
        with self.admin() as admin:
            return admin.submit("ping", config, nodes=nodes, node_count=count, seed=7).id

    def run(self, run_id: str) -> pb.RunInfo:
        with self.admin() as admin:
            return admin.run(run_id)

    def when(self, run_id: str, *states: str, seconds: float = 40.0) -> pb.RunInfo:
        def look() -> pb.RunInfo | None:
            info = self.run(run_id)
            assert info.state in states or info.state not in ENDED, f"{info.state}: {info.reason}\n{self.log(info)}"
            return info if info.state in states else None

        return _until(look, seconds)

    def log(self, run: pb.RunInfo) -> str:
        path = Path(run.directory) / "log.txt"
        return path.read_text() if path.exists() else ""

    def down(self) -> None:
        everyone = [*self.agents.values(), *([self.server] if self.server else [])]
        for process in everyone:
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM)
        for process in everyone:
            process.join(6)
            if process.is_alive():
                process.kill()
                process.join()


@pytest.fixture
def cloud(tmp_path: Path) -> Iterator[Cloud]:
    options = ServeOptions(home=tmp_path / "server", port=0, heartbeat_seconds=0.5)
    one = Cloud(tmp_path, options)
    try:
        yield one.up()
    finally:
        one.down()


@pytest.fixture
def until() -> Callable[..., Any]:
    """``until(what, seconds=30)``: wait until ``what()`` is true and return it."""
    return _until
