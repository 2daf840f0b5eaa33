"""An agent against a server that sends a run id which leads out of the node's home."""

from __future__ import annotations

import json
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import pytest

from farshore.client.agent import AgentOptions, run
from farshore.core.errors import WireError
from farshore.proto import control_pb2 as pb
from farshore.proto.control_pb2_grpc import NodesServicer, add_NodesServicer_to_server

pytestmark = [pytest.mark.process, pytest.mark.timeout(60)]


class Hostile(NodesServicer):
    def Control(self, events: Any, context: Any) -> Any:  # noqa: N802
        next(events)
        yield pb.NodeCommand(welcome=pb.Welcome(server_id="x"))
        start = pb.StartProgram(run_id="../../../outside", workload="ping", config_json="{}", shard_count=1, epoch=0)
        yield pb.NodeCommand(start=start)
        for _ in events:
            pass


def test_nothing_is_written_outside_the_nodes_home(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "down" / "home"
    home.mkdir(parents=True)
    membership = {"name": "a", "key": "k", "pinned": False, "tls": False, "server_id": "x"}
    (home / "membership.json").write_text(json.dumps(membership))
    server = grpc.server(futures.ThreadPoolExecutor(2))
    add_NodesServicer_to_server(Hostile(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    before = sorted(tmp_path.rglob("*"))
    try:
        with pytest.raises(WireError, match="not a valid run id"):
            run(AgentOptions(address=f"127.0.0.1:{port}", name="a", home=home, insecure=True))
    finally:
        server.stop(None)
    assert sorted(tmp_path.rglob("*")) == before
