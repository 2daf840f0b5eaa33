"""Fixtures: a real server and real nodes, each in a process of its own, over TLS on loopback."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import signal
import socket
import threading
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
from farshore.core.paths import LocalServer
from farshore.proto import control_pb2 as pb
from farshore.server.api import ServeOptions, serve

# Ray reads this once per process: clusters that tests start must agree with it. 'ray start' would ask for a token.
os.environ.setdefault("RAY_AUTH_MODE", "disabled")

_SPAWN = multiprocessing.get_context("spawn")
ENDED = {"finished", "failed", "cancelled", "interrupted"}


@pytest.fixture
def simulated_device(monkeypatch: pytest.MonkeyPatch) -> Callable[[], contextlib.AbstractContextManager[Any]]:
    """Let programs compute on the device of ``tests/simulated_device.py`` within ``simulated_device()``."""
    spec = importlib.util.spec_from_file_location("simulated_device", Path(__file__).with_name("simulated_device.py"))
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.install(monkeypatch)
    context: Callable[[], contextlib.AbstractContextManager[Any]] = module.SimulatedDevice
    return context


def _until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Wait until ``condition()`` is true and return its value."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.05)
    return value


def children(pid: int) -> list[psutil.Process]:
    """Return all descendants of a process."""
    return psutil.Process(pid).children(recursive=True)


@dataclass
class Cloud:
    """A server and its nodes, as processes."""

    folder: Path
    options: ServeOptions
    server: BaseProcess | None = None
    agents: dict[str, BaseProcess] = field(default_factory=dict)

    def up(self) -> Cloud:
        (self.options.home / "address").unlink(missing_ok=True)
        self.server = _SPAWN.Process(target=serve, args=(self.options,), name="server")
        self.server.start()
        _until((self.options.home / "address").exists, 90)
        # Keep the port across restarts, as a configured server would.
        self.options = replace(self.options, port=int(self.local.address.rpartition(":")[2]))
        return self

    @property
    def local(self) -> LocalServer:
        return LocalServer.read(self.options.home)

    def admin(self) -> AdminClient:
        return AdminClient.local(self.options.home)

    def submitter(self) -> AdminClient:
        """Connect as a submitter with copies of the admin token and the certificate."""
        token = (self.options.home / "admin.token").read_text().strip()
        return AdminClient(self.local.address, token, self.local.certificate)

    def agent_options(self, name: str, address: str = "", **more: Any) -> AgentOptions:
        with self.admin() as admin:
            token = admin.create_token(valid_seconds=600).token
        home = self.folder / "nodes" / name
        return AgentOptions(address=address or self.local.address, name=name, home=home, token=token, **more)

    def join(self, *names: str, **more: Any) -> None:
        for name in names:
            options = self.agent_options(name, **more)
            process = _SPAWN.Process(target=run_agent, args=(options,), name=name)
            process.start()
            self.agents[name] = process
        _until(lambda: all(self.node(name).state == "connected" for name in names), 90)

    def node(self, name: str) -> pb.NodeInfo:
        with self.admin() as admin:
            return next((n for n in admin.nodes() if n.name == name), pb.NodeInfo(name=name))

    def submit(
        self, config: dict[str, Any], *, method: str = "ping", nodes: tuple[str, ...] = (), count: int = 0
    ) -> str:
        with self.admin() as admin:
            return admin.submit(method, config, nodes=nodes, node_count=count, seed=7).id

    def run(self, run_id: str) -> pb.RunInfo:
        with self.admin() as admin:
            return admin.run(run_id)

    def when(self, run_id: str, *states: str, done: int = 0, seconds: float = 40.0) -> pb.RunInfo:
        def check() -> pb.RunInfo | None:
            info = self.run(run_id)
            assert info.state in states or info.state not in ENDED, f"{info.state}: {info.reason}\n{self.log(info)}"
            return info if info.state in states and info.done >= done else None

        return _until(check, seconds)

    def log(self, run: pb.RunInfo) -> str:
        path = Path(run.directory) / "log.txt"
        return path.read_text() if path.exists() else ""

    def down(self) -> None:
        processes = [*self.agents.values(), *([self.server] if self.server else [])]
        for process in processes:
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal.SIGTERM)
        for process in processes:
            process.join(6)
            if process.is_alive():
                process.kill()
                process.join()


class Proxy:
    """A TCP proxy whose connections can be cut.

    Attributes
    ----------
    rate : float
        Maximum bytes per second of each connection toward the target; 0 = unlimited.
    """

    def __init__(self, target: str, rate: float = 0.0) -> None:
        self.rate = rate
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(self._target)
                except OSError:
                    near.close()
                    continue
                with self._lock:
                    self._pairs.append((near, far))
                for source, sink, rate in ((near, far, self.rate), (far, near, 0.0)):
                    threading.Thread(target=self._forward, args=(source, sink, rate), name="proxy", daemon=True).start()

    @staticmethod
    def _forward(source: socket.socket, sink: socket.socket, rate: float) -> None:
        with contextlib.suppress(OSError):
            while block := source.recv(1 << 11 if rate else 1 << 16):
                if rate:
                    time.sleep(len(block) / rate)
                sink.sendall(block)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> int:
        """Cut all connections; returns how many were open."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        count = 0
        for near, far in pairs:
            with contextlib.suppress(OSError):
                near.getpeername()
                count += 1
            for end in (near, far):
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
                end.close()
        return count

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def proxy() -> Iterator[Callable[..., Proxy]]:
    """``proxy(address, rate=0.0)``: start a TCP proxy in front of ``address``."""
    proxies: list[Proxy] = []

    def make(target: str, rate: float = 0.0) -> Proxy:
        proxies.append(Proxy(target, rate))
        return proxies[-1]

    yield make
    for instance in proxies:
        instance.close()


@contextlib.contextmanager
def _clouds(folder: Path) -> Iterator[Callable[..., Cloud]]:
    clouds: list[Cloud] = []

    def start_cloud(**options: Any) -> Cloud:
        home = folder / f"server-{len(clouds)}"
        clouds.append(Cloud(folder, ServeOptions(**{"home": home, "port": 0, "heartbeat_seconds": 0.5, **options})))
        return clouds[-1].up()

    try:
        yield start_cloud
    finally:
        for instance in clouds:
            instance.down()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Cloud]]:
    """``start(**options)``: start a server; it is stopped, with its nodes, at the end of the test."""
    with _clouds(tmp_path) as start_cloud:
        yield start_cloud


@pytest.fixture(scope="module")
def start_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cloud]]:
    """Like ``start``, but shared by all tests of a module."""
    with _clouds(tmp_path_factory.mktemp("cloud")) as start_cloud:
        yield start_cloud


@pytest.fixture
def cloud(start: Callable[..., Cloud]) -> Cloud:
    """A server with TLS and a heartbeat interval of 0.5 s."""
    return start()


@pytest.fixture
def until() -> Callable[..., Any]:
    """``until(condition, seconds=30)``: wait until ``condition()`` is true and return its value."""
    return _until


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Limit torch to one thread: results depend on the number of threads, bit for bit."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
