"""An agent connects again when its stream ends, even before its first message is written."""

from __future__ import annotations

import asyncio
import json
import threading
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from farshore.client import agent as agent_module
from farshore.client.agent import Agent, AgentOptions
from farshore.core.errors import RefusedError
from farshore.proto import control_pb2 as pb
from farshore.proto.control_pb2_grpc import NodesServicer, add_NodesServicer_to_server

pytestmark = pytest.mark.timeout(60)


class Restarting(NodesServicer):
    """Ends the first stream at once, as a server does that stops, and says goodbye on the second."""

    def __init__(self) -> None:
        self.calls = 0
        self.ended = threading.Event()

    def Control(self, events: Any, context: Any) -> Any:  # noqa: N802
        self.calls += 1
        if self.calls == 1:
            context.add_callback(self.ended.set)
            context.abort(grpc.StatusCode.UNAVAILABLE, "stopping")
        next(events)
        yield pb.NodeCommand(goodbye=pb.Goodbye(reason="seen twice"))


def test_a_stream_that_ends_before_the_first_message_is_opened_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "membership.json").write_text(
        json.dumps({"name": "a", "key": "k", "pinned": False, "tls": False, "server_id": "x"})
    )
    service, server = Restarting(), grpc.server(futures.ThreadPoolExecutor(2))
    add_NodesServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    agent = Agent(AgentOptions(address=f"127.0.0.1:{port}", name="a", home=tmp_path, insecure=True))
    write = agent_module._write

    async def slow(call: Any, event: pb.NodeEvent) -> None:
        await asyncio.to_thread(service.ended.wait, 10)
        await asyncio.sleep(0.2)
        await write(call, event)

    monkeypatch.setattr(agent_module, "_write", slow)
    server.start()
    try:
        with pytest.raises(RefusedError, match="seen twice"):
            asyncio.run(agent.serve())
    finally:
        server.stop(None)
    assert service.calls == 2
