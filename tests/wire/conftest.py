"""Fixtures for channels over all kinds of connections, with a TCP proxy that counts, cuts and stalls; sample arrays."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio
import numpy as np
import pytest
from numpy.typing import NDArray

from farshore.core.errors import RefusedError
from farshore.core.message import Message, Tensor
from farshore.core.transfer import Transfer
from farshore.wire.channel import Channel
from farshore.wire.encodings import ArrayLayout, SizedEncoding, decode
from farshore.wire.grpc_attach import OPTIONS, Dialer, attach_handler
from farshore.wire.io import IoThread
from farshore.wire.local import serve_local
from farshore.wire.memory import pair
from farshore.wire.pump import Read, Write, pump
from farshore.wire.relay import relay


def message(number: int, size: int = 0, kind: str = "test") -> Message:
    """A message with contents that depend on ``number``."""
    array = (np.arange(size, dtype=np.uint64) * 2654435761 + number).astype(np.uint8)
    return Message(kind, step=number, tensors={"data": Tensor(array)})


def check(got: Message, number: int, size: int = 0) -> None:
    """Assert that ``got`` is ``message(number, size)``."""
    assert got.step == number
    assert np.array_equal(got.array("data"), message(number, size).array("data"))


class Proxy:
    """A TCP proxy; runs in an I/O thread.

    Attributes
    ----------
    up, down : int
        Bytes received from clients, and from the server.
    cuts : list of int
        Number of bytes (in both directions) after which the next connections are cut.
    frozen : bool
        Whether bytes are discarded, as on a dead link.
    rate : float
        Maximum bytes per second of each connection and direction; 0 = unlimited.
    """

    def __init__(self, io: IoThread, target: int, cuts: list[int]) -> None:
        self._io, self._target = io, target
        self.up = self.down = self.connections = 0
        self.cuts = cuts
        self.frozen = False
        self.rate = 0.0
        self._writers: set[asyncio.StreamWriter] = set()
        self._server = io.call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Cut all connections now."""
        self._io.loop.call_soon_threadsafe(self._abort)

    def stop(self) -> None:
        """Stop listening and cut all connections."""

        async def stop() -> None:
            self._server.close()
            self._abort()

        self._io.call(stop())

    def _abort(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        left = [self.cuts.pop(0) if self.cuts else 1 << 62]
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target)
        writers = {writer, server_writer}
        self._writers |= writers

        async def forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter, up: bool) -> None:
            with contextlib.suppress(ConnectionError):
                while data := await source.read(1 << 16 if not self.rate else 1 << 12):
                    if self.rate:
                        await asyncio.sleep(len(data) / self.rate)
                    if up:
                        self.up += len(data)
                    else:
                        self.down += len(data)
                    if self.frozen:
                        continue
                    sink.write(data[: left[0]])
                    left[0] -= len(data)
                    if left[0] <= 0:
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(sink.drain(), 1)
                        break
                    await sink.drain()
            for connection in writers:
                connection.transport.abort()

        await asyncio.gather(forward(reader, server_writer, True), forward(server_reader, writer, False))
        self._writers -= writers


@dataclass
class Ends:
    """A connected pair of channels."""

    server: Channel
    node: Channel
    proxy: Proxy | None = None
    dialer: Dialer | None = None
    rows: list[Transfer] = field(default_factory=list)

    @property
    def data_rows(self) -> list[Transfer]:
        """Rows of messages, without internal frames of the channel."""
        return [r for r in self.rows if r.kind not in ("ack", "heartbeat", "hello", "bye", "retransmission")]


class Network:
    """Creates connected channels, and closes everything at the end of the test."""

    message = staticmethod(message)
    check = staticmethod(check)

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.server_io, self.node_io = IoThread("test-server-io").start(), IoThread("test-node-io").start()
        self.channels: dict[str, Channel] = {}
        self._cleanup = contextlib.ExitStack()
        self._ports: dict[tuple[str, float], int] = {}

    def connect(
        self,
        kind: str,
        node: str = "edge",
        *,
        proxied: bool = False,
        cuts: list[int] | None = None,
        stall: float = 30.0,
        shaper: Any = None,
        **options: Any,
    ) -> Ends:
        """Return a pair of channels over a ``kind`` of connection; ``options`` are those of the channels."""
        rows: list[Transfer] = []
        if kind == "memory":
            server, client = pair(node, recorder=rows.append, **options)
            return Ends(server, client, rows=rows)  # type: ignore[arg-type]
        server = Channel(node, node, "server", recorder=rows.append, **options)
        client = Channel("server", node, "node", **options)
        self.channels[node] = server
        port = self.port(kind, stall)
        proxy = Proxy(self.server_io, port, cuts or []) if proxied else None
        ends = Ends(server, client, proxy, rows=rows)
        ends.dialer = self.dial(client, proxy.port if proxy else port, node, stall=stall, shaper=shaper)
        if proxy:
            self._cleanup.callback(proxy.stop)
        return ends

    def dial(self, channel: Channel, port: int, ticket: str, *, stall: float = 30.0, **options: Any) -> Dialer:
        """Keep ``channel`` connected to ``port``."""
        dialer = Dialer(
            channel, self.node_io, f"127.0.0.1:{port}", ticket, stall_seconds=stall, max_backoff=0.2, **options
        )
        self._cleanup.callback(dialer.stop)
        return dialer.start()

    def port(self, kind: str, stall: float = 30.0) -> int:
        """Return a port whose data connections reach :attr:`channels`, directly or through a relay."""
        if (kind, stall) not in self._ports:

            async def serve(ticket: str, read: Read, write: Write) -> None:
                if ticket not in self.channels:
                    raise RefusedError("unknown ticket")
                await pump(self.channels[ticket], read, write, stall_seconds=stall)

            if kind == "relay":
                path = self._folder / f"run-{stall:g}.sock"
                local = self.server_io.call(serve_local(path, serve))
                self._cleanup.callback(lambda: self.server_io.loop.call_soon_threadsafe(local.close))
                target = path

                async def serve_by_relay(ticket: str, read: Read, write: Write) -> None:
                    await relay(ticket, read, write, target)

                self._ports[kind, stall] = self.listen(serve_by_relay)
            else:
                self._ports[kind, stall] = self.listen(serve)
        return self._ports[kind, stall]

    def listen(self, serve: Any, port: int = 0) -> int:
        """Start a gRPC server with the data service; returns the port."""

        async def start() -> tuple[grpc.aio.Server, int]:
            server = grpc.aio.server(options=OPTIONS)
            server.add_generic_rpc_handlers((attach_handler(serve),))
            bound = server.add_insecure_port(f"127.0.0.1:{port}")
            await server.start()
            return server, bound

        server, bound = self.server_io.call(start())
        self._cleanup.callback(lambda: self.server_io.call(server.stop(0)))
        return bound

    def stop(self) -> None:
        """Close everything."""
        for channel in self.channels.values():
            channel.fail(RefusedError("the test is over"))
        self._cleanup.close()
        self.node_io.stop()
        self.server_io.stop()


@pytest.fixture
def network(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Network]:
    # The paths of unix sockets must be short.
    network = Network(tmp_path_factory.mktemp("w"))
    yield network
    network.stop()


@pytest.fixture
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def normal() -> Callable[..., NDArray[np.float32]]:
    """``normal(*shape, seed=0)``: an array of normally distributed numbers."""
    return _normal


@pytest.fixture
def padded() -> Callable[..., NDArray[np.float32]]:
    """``padded(lengths, *rest, longest=None)``: an array [B, T, …] whose padding is zero."""

    def make(lengths: Sequence[int], *rest: int, longest: int | None = None) -> NDArray[np.float32]:
        out = np.zeros((len(lengths), longest or max(lengths), *rest), np.float32)
        for b, n in enumerate(lengths):
            out[b, :n] = _normal(n, *rest, seed=b)
        return out

    return make


@pytest.fixture
def roundtrip() -> Callable[[SizedEncoding, NDArray[Any]], NDArray[Any]]:
    """``roundtrip(encoding, array)``: encode, check the size, decode."""

    def make(encoding: SizedEncoding, array: NDArray[Any]) -> NDArray[Any]:
        encoded = encoding.encode(array)
        body = np.ascontiguousarray(encoded.body).reshape(-1).view(np.uint8).data
        assert len(encoded.side) + len(body) == encoding.size(array.shape, array.dtype)
        return decode(encoding.name, memoryview(encoded.side), body, ArrayLayout(array.dtype, array.shape))

    return make
