"""Strangers cannot use up a server's descriptors; limits are raised, and what a server carries is known."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from farshore.cli.checks import check_capacity as doctor_capacity
from farshore.client.admin import AdminClient
from farshore.client.agent import AgentOptions
from farshore.core.descriptors import DescriptorLimit
from farshore.core.errors import ConfigError
from farshore.core.handshake import hello
from farshore.core.nodes import RoleCount, RoleRequest
from farshore.proto import control_pb2 as pb
from farshore.server.connection_guard import ConnectionGuard, GuardLimits
from farshore.server.submission import check_capacity
from farshore.wire.channel import Channel
from farshore.wire.grpc_attach import Dialer
from farshore.wire.io import IoThread

sys.path.insert(0, str(Path(__file__).parent))
from raw_node import RawNode

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors of Linux processes")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Listener:
    """Accepts connections in this process, as gRPC does."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port = self._listener.getsockname()[1]
        self.clients: list[socket.socket] = []
        self.accepted: list[socket.socket] = []

    def connect(self, count: int) -> None:
        for _ in range(count):
            self.clients.append(socket.create_connection(("127.0.0.1", self.port)))
            self.accepted.append(self._listener.accept()[0])

    def open(self) -> list[int]:
        """Indices of the connections that the server's end has not shut down."""
        found = []
        for index, client in enumerate(self.clients):
            client.setblocking(False)
            try:
                assert client.recv(1) == b""
            except BlockingIOError:
                found.append(index)
        return found

    def peer(self, index: int) -> str:
        return f"ipv4:127.0.0.1:{self.clients[index].getsockname()[1]}"

    def close(self) -> None:
        for end in (*self.clients, *self.accepted, self._listener):
            end.close()


@pytest.fixture
def listener() -> Iterator[Listener]:
    instance = Listener()
    yield instance
    instance.close()


def test_connections_that_make_no_valid_call_are_closed_after_a_while(listener: Listener) -> None:
    clock = Clock()
    guard = ConnectionGuard(listener.port, GuardLimits(seconds=10, per_address=100), clock)
    listener.connect(3)
    assert guard.sweep() == 0
    guard.authenticated(listener.peer(1))
    clock.now += 5
    listener.connect(1)
    assert guard.sweep() == 0
    clock.now += 6
    assert guard.sweep() == 2
    assert listener.open() == [1, 3]
    clock.now += 6
    assert guard.sweep() == 1
    assert listener.open() == [1]


def test_the_oldest_strangers_of_an_address_go_first(listener: Listener) -> None:
    clock = Clock()
    guard = ConnectionGuard(listener.port, GuardLimits(per_address=3), clock)
    for _ in range(6):
        listener.connect(1)
        clock.now += 0.1
        guard.sweep()
    assert listener.open() == [3, 4, 5]


def test_descriptors_are_kept_for_operators(listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    used = len(os.listdir("/dev/fd"))  # noqa: PTH208
    monkeypatch.setattr(DescriptorLimit, "current", classmethod(lambda cls: DescriptorLimit(used + 60, used + 60)))
    guard = ConnectionGuard(listener.port, GuardLimits(per_address=1000, reserve=20), clock)
    for _ in range(24):
        listener.connect(1)
        clock.now += 0.01
    guard.authenticated(listener.peer(0))
    guard.sweep()
    left = listener.open()
    assert 0 in left
    assert 23 in left
    assert len(left) <= 20


def test_a_run_with_more_nodes_than_the_server_can_carry_is_refused() -> None:
    nodes = DescriptorLimit.current().nodes
    check_capacity([RoleRequest("node", RoleCount(nodes, nodes))])
    with pytest.raises(ConfigError, match=f"can carry {nodes} nodes in a run"):
        check_capacity([RoleRequest("node", RoleCount(nodes, nodes)), RoleRequest("other", RoleCount(1, 1))])


def test_the_doctor_says_what_a_server_can_carry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DescriptorLimit, "current", classmethod(lambda cls: DescriptorLimit(256, 1024)))
    found = doctor_capacity()
    assert found.state == "ok"
    assert "302 nodes in a run, by its limit of 1024 open files" in found.detail
    monkeypatch.setattr(DescriptorLimit, "current", classmethod(lambda cls: DescriptorLimit(64, 64)))
    assert doctor_capacity().state == "broken"


_SERVER = """
import resource, sys
from pathlib import Path
from farshore.server.api import ServeOptions, serve
from farshore.server.dashboard.options import DashboardOptions

home, soft, hard = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
dashboard = DashboardOptions(home, "127.0.0.1", 0, False, (), None, None, None) if "dashboard" in sys.argv else None
options = ServeOptions(home=home, port=0, dashboard=dashboard, insecure="insecure" in sys.argv)
serve(options, on_ready=lambda r: print(r.dashboard, flush=True))
"""


@contextlib.contextmanager
def _server(home: Path, soft: int, hard: int, *more: str) -> Iterator[tuple[int, str]]:
    """Start a server with limits on its descriptors; yields its process id and the dashboard's URL."""
    command = [sys.executable, "-P", "-c", _SERVER, str(home), str(soft), str(hard), *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process.pid, process.stdout.readline().strip()
    finally:
        process.terminate()
        process.wait(20)


def _strangers(address: str, count: int) -> list[socket.socket]:
    host, _, port = address.rpartition(":")
    return [socket.create_connection((host, int(port)), timeout=20) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(180)
def test_admin_calls_and_submissions_work_beside_1300_idle_connections(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with _server(home, 1024, 1024) as (pid, _):  # the hard limit too: raising the soft one does not help
        with AdminClient.local(home) as admin:
            idle = _strangers(admin.address, 1300)
        for _ in range(5):
            with AdminClient.local(home) as admin:  # a new connection each time, as commands have
                assert admin.submit("ping", {"rounds": 1}, nodes=["nobody"]).state == "waiting"
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) < 1024 - 24
        for connection in idle:
            connection.close()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(180)
def test_the_soft_limit_is_raised_so_that_a_run_carries_many_nodes(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with _server(home, 128, 1024) as (pid, _):
        limits = Path(f"/proc/{pid}/limits").read_text()
        line = next(line for line in limits.splitlines() if line.startswith("Max open files"))
        assert line.split()[3:5] == ["1024", "1024"]
        with AdminClient.local(home) as admin, pytest.raises(ConfigError, match="can carry 302 nodes"):
            admin.submit("ping", {"rounds": 1}, node_count=303)


class _Server:
    """What :class:`RawNode` needs to join."""

    def __init__(self, home: Path, folder: Path, token: str, address: str) -> None:
        self._folder, self._token, self.address = folder, token, address

    def agent_options(self, name: str, **more: Any) -> AgentOptions:
        return AgentOptions(address=self.address, name=name, home=self._folder / name, token=self._token, **more)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(300)
def test_380_nodes_take_part_in_one_run_of_a_server_with_a_soft_limit_of_1024(tmp_path: Path, until: Any) -> None:
    home, count = tmp_path / "home", 380
    with _server(home, 1024, 4096, "insecure") as (pid, _), AdminClient.local(home) as admin, ExitStack() as stack:
        server = _Server(home, tmp_path, admin.create_token(valid_seconds=600).token, admin.address)
        nodes = [stack.enter_context(RawNode(server, f"n{index}")) for index in range(count)]
        beats = stack.enter_context(_heartbeats(nodes))
        run_id = admin.submit("ping", {"rounds": 1, "kilobytes": 1}, node_count=count).id
        io = stack.enter_context(IoThread("nodes"))
        for node in nodes:
            command = next(c for c in node.commands if c.WhichOneof("command") == "start").start
            channel = Channel("server", node.name, "node", epoch=command.epoch)
            stack.callback(channel.close, 0.0)
            dialer = Dialer(
                channel, io, server.address, command.ticket, options=[("grpc.use_local_subchannel_pool", 1)]
            )
            stack.callback(dialer.start().stop)
            channel.send(hello([]))
        until(lambda: admin.run(run_id).state != "starting", 120)
        assert admin.run(run_id).state == "running", admin.run(run_id).reason
        assert len(list(Path(f"/proc/{pid}/fd").iterdir())) > 3 * count
        assert beats.is_alive()


@contextlib.contextmanager
def _heartbeats(nodes: list[RawNode]) -> Iterator[threading.Thread]:
    """Send the heartbeats of nodes in a thread."""
    ending = threading.Event()

    def beat() -> None:
        while not ending.wait(2.0):
            for node in nodes:
                node.send(pb.NodeEvent(heartbeat=pb.Heartbeat()))

    thread = threading.Thread(target=beat, name="heartbeats")
    thread.start()
    try:
        yield thread
    finally:
        ending.set()
        thread.join()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(180)
def test_the_dashboard_works_beside_200_idle_connections(tmp_path: Path) -> None:
    pytest.importorskip("uvicorn")
    home = tmp_path / "home"
    with _server(home, 1024, 1024, "dashboard") as (_, url):
        idle = _strangers(url.removeprefix("http://").rstrip("/"), 200)
        for _ in range(3):
            with urllib.request.urlopen(url + "runs", timeout=20) as reply:
                assert reply.status == 200
        for connection in idle:
            connection.close()
