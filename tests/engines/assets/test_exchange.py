"""The exchange of assets: only what a node lacks is sent, in bounded parts, as planned; errors name the peer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import DataError, WireError
from farshore.core.message import Message, Tensor
from farshore.engines.assets import protocol
from farshore.engines.assets.asset import Asset, MemorySource
from farshore.engines.assets.cache import AssetCache
from farshore.engines.assets.offer import AssetOffer, exchange
from farshore.engines.assets.protocol import MOST_ASSETS, Chunk, Fetch, Offer, Ready
from farshore.engines.assets.receiver import AssetReceiver
from farshore.wire.pack import pack, unpack

SIZES = (2500, 0, 1, 700)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 300 bytes, batches of 1000: the first asset takes three batches of up to four chunks."""
    for module in (protocol, "farshore.engines.assets.offer"):
        for name, value in (("CHUNK_BYTES", 300), ("BATCH_BYTES", 1000)):
            if isinstance(module, str):
                monkeypatch.setattr(f"{module}.{name}", value)
            else:
                monkeypatch.setattr(module, name, value)


def sources(sizes: Sequence[int] = SIZES) -> list[MemorySource]:
    rng = np.random.default_rng(1)
    return [MemorySource(rng.integers(0, 256, size, np.uint8), f"asset {n}") for n, size in enumerate(sizes)]


def over_the_wire(message: Message) -> Message:
    packed = pack(message)
    return unpack(packed.header, memoryview(b"".join(packed.payload)))


class Node:
    """A node's end, with the content that it uses."""

    def __init__(self, folder: Path) -> None:
        self.cache, self.used = AssetCache(folder), dict[str, bytes]()
        self.receiver = AssetReceiver(self.cache, self.use)

    def use(self, asset: Asset) -> bool:
        file = self.cache.open(asset)
        if file is None:
            return False
        with file:
            self.used[asset.name] = file.read()
        return True


def run(offer: AssetOffer, node: Node, stop_after: int = 1 << 30) -> list[tuple[str, Message]]:
    """Exchange messages until the node is ready, or until so many were sent."""
    sent = [("down", offer.message(7))]
    down = [sent[0][1]]
    while down:
        answers = [answer for m in down if (answer := node.receiver.answer(over_the_wire(m))) is not None]
        down = []
        for answer in answers:
            sent.append(("up", answer))
            for chunk in offer.reply(over_the_wire(answer), "node a") or ():
                sent.append(("down", chunk))
                down.append(chunk)
                if len(sent) >= stop_after:
                    for each in down:
                        node.receiver.answer(over_the_wire(each))
                    return sent
    return sent


def shape(message: Message) -> tuple[Any, ...]:
    sizes = {name: (tensor.array.shape, tensor.array.dtype) for name, tensor in message.tensors.items()}
    fields = {**message.fields, "digests": len(str(message.fields.get("digests")))}
    return message.kind, message.round, fields, sizes


def bytes_sent(messages: Sequence[tuple[str, Message]]) -> int:
    return sum(tensor.array.nbytes for _, message in messages for tensor in message.tensors.values())


def test_a_new_node_receives_everything_and_a_later_run_nothing(tmp_path: Path) -> None:
    offer, expected = AssetOffer(sources()), {s.asset.name: s.read(0, s.asset.size).tobytes() for s in sources()}
    node = Node(tmp_path)
    assert bytes_sent(run(offer, node)) == sum(SIZES)
    assert node.used == expected
    again = Node(tmp_path)
    messages = run(offer, again)
    assert [Ready.matches(message) for _, message in messages] == [False, True]
    assert again.used == expected


@pytest.mark.parametrize("lacking", [False, True])
def test_the_planned_messages_are_those_that_are_sent(tmp_path: Path, lacking: bool) -> None:
    node = Node(tmp_path)
    if not lacking:
        run(AssetOffer(sources()), node)
    sent = run(AssetOffer(sources()), Node(tmp_path))
    planned = list(exchange([Asset.unknown(s.asset.size, s.asset.name) for s in sources()], 7, lacking=lacking))
    assert [(d, shape(m)) for d, m in planned] == [(d, shape(m)) for d, m in sent]
    assert max((m.array("content").nbytes for _, m in sent if m.tensors), default=0) == (300 if lacking else 0)


def test_an_interrupted_transfer_continues_with_the_first_missing_byte(tmp_path: Path) -> None:
    offer = AssetOffer(sources())
    first = run(offer, (node := Node(tmp_path)), stop_after=8)
    assert not node.used
    node.receiver.close()
    second = run(offer, Node(tmp_path))
    assert bytes_sent(first) > 1000
    assert bytes_sent(first) + bytes_sent(second) == sum(SIZES)


def test_an_unfinished_file_that_was_damaged_is_fetched_again(tmp_path: Path) -> None:
    offer = AssetOffer(sources())
    run(offer, (node := Node(tmp_path)), stop_after=8)
    node.receiver.close()
    (partial,) = tmp_path.glob("*.part")
    partial.write_bytes(bytes(partial.stat().st_size))
    again = Node(tmp_path)
    run(offer, again)
    assert len(again.used) == len(SIZES)


def test_an_offer_in_the_middle_of_a_transfer_begins_anew_and_sends_no_byte_twice(tmp_path: Path) -> None:
    offer, node = AssetOffer(sources()), Node(tmp_path)
    first = run(offer, node, stop_after=8)
    second = run(offer, node)
    assert bytes_sent(first) + bytes_sent(second) == sum(SIZES)


def test_a_program_may_create_the_content_itself(tmp_path: Path) -> None:
    receiver = AssetReceiver(AssetCache(tmp_path), lambda asset: True)
    answer = receiver.answer(AssetOffer(sources()).message(3))
    assert answer is not None
    assert Ready.matches(answer)
    assert answer.round == 3
    assert not any(tmp_path.iterdir())


def test_wrong_content_ends_in_an_error_that_names_asset_and_server(tmp_path: Path) -> None:
    offer, node = AssetOffer(sources([100])), Node(tmp_path)
    request = node.receiver.answer(offer.message())
    assert request is not None
    (chunk,) = offer.reply(request, "node a") or ()
    changed = replace(chunk, tensors={"content": Tensor(chunk.array("content") ^ np.uint8(1))})
    with pytest.raises(DataError, match="the server sent content of 'asset 0' that differs from its digest"):
        node.receiver.answer(changed)
    assert node.cache.open(sources([100])[0].asset) is None


def chunk(index: int = 0, offset: int = 0, size: int = 300, **tensors: Any) -> Message:
    given = tensors or {"content": np.zeros(size, np.uint8)}
    return Chunk(index, offset).message(tensors={name: Tensor(array) for name, array in given.items()})


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (chunk(index=1), "unexpected chunk of asset 1 at 0"),
        (chunk(offset=300), "unexpected chunk of asset 0 at 300"),
        (chunk(size=0), "0 bytes"),
        (chunk(size=301), "301 bytes"),
        (chunk(content=np.zeros(10, np.float32)), "expected one tensor of bytes"),
        (chunk(content=np.zeros((2, 2), np.uint8)), "expected one tensor of bytes"),
        (chunk(other=np.zeros(10, np.uint8)), "expected one tensor of bytes"),
        (Message("asset", fields={"what": "chunk", "index": 0}), "'offset' is missing"),
        (Message("control", fields={"what": "go"}), "expected 'offer', 'chunk', got a 'control' message 'go'"),
        (Message("control", fields={"what": "offer", "digests": "x", "sizes": "1", "names": "a"}), "invalid digest"),
        (Offer(("0" * 64,), (1, 2), ("a",)).message(), "zip"),
        (Offer(("0" * 64,), (-1,), ("a",)).message(), "invalid size"),
        (Offer(("0" * 64,) * 5000, (1,) * 5000, ("a",) * 5000).message(), f"more than {MOST_ASSETS}"),
    ],
)
def test_a_node_refuses_malformed_messages(tmp_path: Path, message: Message, complaint: str) -> None:
    node = Node(tmp_path)
    node.receiver.answer(AssetOffer(sources()).message())
    with pytest.raises(WireError, match=f"the server: .*{complaint}"):
        node.receiver.answer(message)


def test_a_node_refuses_chunks_that_it_did_not_request(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="the server: unexpected chunk"):
        Node(tmp_path).receiver.answer(chunk())
    node = Node(tmp_path)
    node.receiver.answer(AssetOffer(sources([2500])).message())
    for offset in (0, 300, 600):
        assert node.receiver.answer(chunk(offset=offset)) is None
    with pytest.raises(WireError, match="sent more of 'asset 0' than was requested"):
        node.receiver.answer(chunk(offset=900))


@pytest.mark.parametrize(
    ("message", "complaint"),
    [
        (Fetch(4, 0, 1), "requested asset 4 of 4"),
        (Fetch(-1, 0, 1), "requested asset -1 of 4"),
        (Fetch(0, -1, 10), "requested 10 bytes at -1"),
        (Fetch(0, 2500, 1), "requested 1 bytes at 2500"),
        (Fetch(0, 2400, 101), "requested 101 bytes at 2400"),
        (Fetch(0, 0, 1001), "requested 1001 bytes at 0"),
        (Fetch(0, 0, 0), "requested 0 bytes at 0"),
        (Fetch(1, 0, 1), "requested 1 bytes at 0"),
        (Chunk(0, 0), "expected 'fetch', 'ready', got a 'asset' message 'chunk'"),
    ],
)
def test_a_server_refuses_malformed_requests(message: Any, complaint: str) -> None:
    with pytest.raises(WireError, match=f"node a: .*{complaint}"):
        AssetOffer(sources()).reply(message.message(), "node a")


def test_an_offer_has_a_largest_number_of_assets() -> None:
    with pytest.raises(ValueError, match="exceed the limit"):
        AssetOffer([sources([1])[0]] * (MOST_ASSETS + 1))


def test_the_server_reads_a_chunk_only_when_it_is_sent() -> None:
    class Counting(MemorySource):
        reads = 0

        def read(self, offset: int, count: int) -> Any:
            Counting.reads += 1
            return super().read(offset, count)

    reply = AssetOffer([Counting(np.zeros(2500, np.uint8), "x")]).reply(Fetch(0, 0, 1000).message(), "node a")
    assert reply is not None
    assert Counting.reads == 0
    next(reply)
    assert Counting.reads == 1
