"""A node at the level of the protocol, which sends whatever a test wants; for servers without TLS."""

from __future__ import annotations

import contextlib
import queue
from collections.abc import Iterator
from typing import Any

import grpc

from farshore.client.agent import AgentOptions
from farshore.client.join import join, versions_message
from farshore.proto import control_pb2 as pb
from farshore.proto.control_pb2_grpc import NodesStub


class RawNode:
    """Joins and opens a control stream; a context manager."""

    def __init__(self, cloud: Any, name: str, **hello: Any) -> None:
        self.name = name
        options: AgentOptions = cloud.agent_options(name, insecure=True)
        member = join(options)
        self.key = member.key
        self.address = options.address
        self._channel = grpc.insecure_channel(options.address, [("grpc.use_local_subchannel_pool", 1)])
        self._events: queue.Queue[pb.NodeEvent | None] = queue.Queue(maxsize=64)
        metadata = (("farshore-key", self.key), ("farshore-secret", member.secrets[0]))
        self.commands = NodesStub(self._channel).Control(self._sent(), metadata=metadata)
        self.send(pb.NodeEvent(hello=pb.Hello(**{"versions": versions_message(), **hello})))
        assert next(self.commands).WhichOneof("command") == "welcome"
        self.send(pb.NodeEvent(stored=pb.SecretStored()))

    def _sent(self) -> Iterator[pb.NodeEvent]:
        while (event := self._events.get()) is not None:
            yield event

    def send(self, event: pb.NodeEvent, timeout: float | None = None) -> None:
        """Send an event; blocks while the server does not read, up to ``timeout`` seconds (``queue.Full``)."""
        self._events.put(event, timeout=timeout)

    def __enter__(self) -> RawNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.commands.cancel()
        with contextlib.suppress(queue.Full):
            self._events.put_nowait(None)
        self._channel.close()
