"""A revoked node loses its data connections and its tickets at once, through the relay and on a run's own port."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from farshore.client.join import join, versions_message
from farshore.core.errors import RefusedError
from farshore.proto import control_pb2 as pb
from farshore.proto.control_pb2_grpc import NodesStub
from farshore.server.ticket_router import TicketRouter
from farshore.wire.channel import Channel

pytestmark = [pytest.mark.process, pytest.mark.timeout(90)]


@contextmanager
def _node(cloud: Any, name: str) -> Iterator[tuple[Any, Any]]:
    """A node by hand, which need not obey; yields its gRPC channel and its control stream after the welcome."""
    options = cloud.agent_options(name)
    member = join(options)
    events: queue.Queue[pb.NodeEvent | None] = queue.Queue()
    events.put(pb.NodeEvent(hello=pb.Hello(versions=versions_message())))
    credentials = grpc.ssl_channel_credentials(member.root)
    override = [("grpc.ssl_target_name_override", "farshore-server")]
    with grpc.secure_channel(options.address, credentials, override) as channel:
        metadata = (("farshore-key", member.key), ("farshore-secret", member.secrets[0]))
        call = NodesStub(channel).Control(iter(events.get, None), metadata=metadata)
        assert next(call).WhichOneof("command") == "welcome"
        events.put(pb.NodeEvent(stored=pb.SecretStored()))
        yield (lambda port: grpc.secure_channel(_at(options.address, port), credentials, override)), call
        events.put(None)


def _at(address: str, port: int) -> str:
    return f"{address.rpartition(':')[0]}:{port}" if port else address


def _attach(channel: Any, ticket: str) -> Any:
    attach = channel.stream_stream("/farshore.data.v1.Data/Attach")
    stop = threading.Event()
    call = attach(iter(lambda: stop.wait(60) and None, None), metadata=(("farshore-ticket", ticket),), timeout=20)
    call.add_callback(stop.set)
    return call


def _end(call: Any) -> tuple[Any, str]:
    """Read a connection to its end; the status is known only once everything before it was read."""
    with contextlib.suppress(grpc.RpcError):
        for _ in call:
            pass
    return call.code(), call.details()


@pytest.mark.parametrize("direct", [False, True])
def test_connections_and_tickets_of_a_revoked_node_die_at_once(start: Any, until: Any, direct: bool) -> None:
    options = {}
    if direct:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            options["data_ports"] = (probe.getsockname()[1],) * 2
    cloud = start(**options)
    with _node(cloud, "a") as (connect, control):
        until(lambda: cloud.node("a").state == "connected")
        cloud.submit({"rounds": 100_000, "kilobytes": 1, "pause_ms": 20}, count=1)
        started = next(command.start for command in control if command.WhichOneof("command") == "start")
        with connect(started.data_port) as channel:
            attached = _attach(channel, started.ticket)
            with cloud.admin() as admin:
                admin.revoke(node="a")
            assert _end(attached)[0] is not grpc.StatusCode.DEADLINE_EXCEEDED
            code, reason = _end(_attach(channel, started.ticket))
        if direct:  # the run's process may be gone by then
            assert code not in (grpc.StatusCode.OK, grpc.StatusCode.DEADLINE_EXCEEDED)
        else:
            assert code is grpc.StatusCode.PERMISSION_DENIED, reason


def test_a_run_process_refuses_the_tickets_of_a_revoked_node_only() -> None:
    router = TicketRouter()
    router.add("ticket-a", Channel("a", "a", "server", epoch=0))
    router.add("ticket-b", Channel("b", "b", "server", epoch=0))
    router.remove("a")
    assert router.node_of("ticket-b") == "b"
    with pytest.raises(RefusedError, match="ticket"):
        asyncio.run(router.serve("ticket-a", None, None))  # type: ignore[arg-type]
