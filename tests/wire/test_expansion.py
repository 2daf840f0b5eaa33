"""Bounds on what small frames decode to: hostile frames end their connection, the messages of all engines pass."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import WireError
from farshore.core.expectations import Expected, TensorSpec
from farshore.core.message import Message, Tensor
from farshore.proto import frame_pb2 as pb
from farshore.wire.channel import Channel
from farshore.wire.encodings import Chain, Int2, Int8, LowRank, Ragged, TopK
from farshore.wire.expansion import FLOOR_BYTES
from farshore.wire.frame import FrameType, make_prefix
from farshore.wire.memory import pair

_SIDE = 1 << 15


def _bomb() -> tuple[bytes, bytes]:
    """Header and payload of a rank-1 tensor of 131 kB that stands for 2 GiB in half precision."""
    body = (1).to_bytes(2, "little") + bytes(2 * 2 * _SIDE)
    header = pb.FrameHeader(kind="contribution")
    header.tensors.add(
        name="w", dtype=pb.F16, shape=[_SIDE, _SIDE], encoding="lowrank", length=len(body), side=2, offset=0
    )
    return header.SerializeToString(), body


def _server(**options: Any) -> Channel:
    return Channel("edge", "edge", "server", recorder=lambda row: None, **options)


#: Receives a frame with a gigabyte of memory to spare; its standard input is the frame.
_IN_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
from farshore.core.errors import WireError
from farshore.wire.channel import Channel
from farshore.wire.frame import FrameType, make_prefix

used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), used + (1 << 30)))
server = Channel("edge", "edge", "server", recorder=lambda row: None)
connection = server.attach(lambda: None)
connection.feed(make_prefix(FrameType.HELLO, 0, 0, 0))
try:
    connection.feed(sys.stdin.buffer.read())
    server.receive(1)
except (WireError, MemoryError) as error:
    print(f"{type(error).__name__} {server.stopped} {error}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs a memory limit")
def test_a_small_frame_that_stands_for_gigabytes_ends_its_connection_and_not_the_process() -> None:
    header, payload = _bomb()
    frame = make_prefix(FrameType.DATA, 0, 1, 0, header, [payload]) + header + payload
    assert len(frame) < 132_000
    command = [sys.executable, "-P", "-c", _IN_LITTLE_MEMORY]
    done = subprocess.run(command, input=frame, stdout=subprocess.PIPE, timeout=60, check=True)
    kind, stopped, message = done.stdout.decode().split(maxsplit=2)
    assert (kind, stopped) == ("WireError", "False")  # the channel waits for another connection
    assert "131074 bytes would decode to 2147483648" in message


def test_a_node_that_sends_such_a_frame_again_and_again_loses_its_channel_with_the_reason() -> None:
    import asyncio

    from farshore.server.ticket_router import TicketRouter

    async def attempt(router: TicketRouter) -> None:
        header, payload = _bomb()
        chunks = [
            make_prefix(FrameType.HELLO, 0, 0, 0),
            make_prefix(FrameType.DATA, 0, 1, 0, header, [payload]) + header + payload,
        ]

        async def read() -> bytes | None:
            return chunks.pop(0) if chunks else None

        async def write(chunk: bytes) -> None:
            pass

        await router.serve("t", read, write)

    server, router = _server(), TicketRouter()
    router.add("t", server)
    for _ in range(3):
        assert not server.stopped
        with pytest.raises(WireError, match="would decode"):
            asyncio.run(attempt(router))
    assert server.stopped


def _model(side: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal((side, side)).astype(np.float32)


@pytest.mark.parametrize(
    "tensor",
    [
        Tensor(_model(1024).reshape(-1), TopK(0.001)),
        Tensor(_model(1024).reshape(-1), Chain(TopK(0.001), Int8())),
        Tensor(_model(1024).reshape(-1), Chain(TopK(0.001), Int2())),
        Tensor(_model(2048), LowRank(1)),
        Tensor(_model(2048), Chain(LowRank(1), Int8())),
        Tensor(_model(1024).reshape(8, 128, 1024), Chain(Ragged([1] * 8), Int2())),
    ],
    ids=["topk", "topk|int8", "topk|int2", "lowrank", "lowrank|int8", "ragged|int2"],
)
def test_the_sparsest_messages_of_the_engines_are_within_the_bounds(
    tensor: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("farshore.wire.expansion.FLOOR_BYTES", 1 << 20)  # so that the ratio alone decides
    model = Message("model", tensors={"w": Tensor(tensor.array)})
    server, node = pair("edge")
    if "lowrank" in (tensor.encoding.name if tensor.encoding else ""):
        server.send(model)  # the ratio of a factorization grows with the matrix, which both ends know
        node.receive(1)
    node.send(Message("update", tensors={"w": tensor}))
    assert server.receive(1).array("w").shape == tensor.array.shape


def test_what_was_exchanged_in_plain_may_come_back_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farshore.wire.expansion.FLOOR_BYTES", 1000)
    update = Message("update", tensors={"w": Tensor(np.ones((4096, 512), np.float32), Chain(LowRank(1), Int2()))})
    server, node = pair("edge")
    monkeypatch.setattr("farshore.wire.expansion.RATIO", 100)
    with pytest.raises(WireError, match="would decode to 8388608"):
        node.send(update)
    server.send(Message("model", tensors={"w": Tensor(np.ones((4096, 512), np.float32))}))
    node.receive(1)
    node.send(update)
    server.receive(1)


def test_a_declared_size_replaces_the_general_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("farshore.wire.expansion.FLOOR_BYTES", 1000)
    monkeypatch.setattr("farshore.wire.expansion.RATIO", 1)
    server, node = pair("edge")
    update = Message("update", tensors={"w": Tensor(np.ones((64, 64), np.float32), LowRank(1))})
    for end in (server, node):
        end.expect({"update": Expected(dense_bytes=64 * 64 * 4)})
    node.send(update)
    assert server.receive(1).array("w").sum() == pytest.approx(4096)
    with pytest.raises(WireError, match="at most 16384 are expected"):
        node.send(Message("update", tensors={"w": Tensor(np.ones((65, 64), np.float32), LowRank(1))}))


_SPEC = {"w": TensorSpec("f32", (None, 4))}


@pytest.mark.parametrize(
    ("message", "error"),
    [
        (Message("chat"), "unexpected 'chat' message; expected kinds: update"),
        (Message("update", tensors={"v": Tensor(np.ones((2, 4), np.float32))}), "tensor 'v': not expected"),
        (Message("update", tensors={"w": Tensor(np.ones((2, 4)))}), r"f64 \[2, 4\] instead of f32 \[None, 4\]"),
        (Message("update", tensors={"w": Tensor(np.ones((4, 2), np.float32))}), r"f32 \[4, 2\] instead of"),
        (Message("update", tensors={"w": Tensor(np.ones((2, 4), np.float32), TopK(1))}), "encoding 'topk' is not"),
    ],
    ids=["kind", "name", "dtype", "shape", "encoding"],
)
def test_messages_that_the_program_does_not_expect_are_refused_before_they_are_decoded(
    message: Message, error: str
) -> None:
    node = Channel("server", "edge", "node")
    node.send(message)
    server = _server()
    server.expect({"update": Expected(encodings={"raw"}, tensors=_SPEC)}, only=True)
    chunks = node.attach(lambda: None)
    chunks.feed(make_prefix(FrameType.HELLO, 0, 0, 0))
    connection = server.attach(lambda: None)
    sent = b"".join(chunks.outgoing())
    with pytest.raises(WireError, match=error):
        connection.feed(sent)
    assert not server.inbox.ready


def test_a_frame_larger_than_any_expected_message_is_refused_by_its_prefix() -> None:
    server = _server()
    server.expect({"update": Expected(dense_bytes=1000)}, only=True)
    connection = server.attach(lambda: None)
    connection.feed(make_prefix(FrameType.HELLO, 0, 0, 0))
    announced = make_prefix(FrameType.DATA, 0, 1, 0, b"", [bytes(4 << 20)])
    with pytest.raises(WireError, match="announces 0 \\+ 4194304 bytes"):
        connection.feed(announced)


def test_the_floor_admits_whole_batches_of_activations() -> None:
    assert FLOOR_BYTES >= 32 * 512 * 4096 * 4  # batch, tokens, width, bytes: float32
