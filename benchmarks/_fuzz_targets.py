"""The decoders that ``fuzz.py`` gives mutated inputs to: valid inputs of each, and the call that decodes one."""

from __future__ import annotations

import io
import struct
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from farshore.core.errors import FarshoreError


@dataclass(frozen=True)
class Target:
    """A decoder.

    ``corpus`` returns valid inputs; ``decode`` decodes one; ``errors`` are the exceptions that it may raise; ``weight``
    is its share of all inputs.
    """

    name: str
    corpus: Callable[[], Sequence[bytes]]
    decode: Callable[[bytes], object]
    errors: tuple[type[BaseException], ...] = (FarshoreError,)
    weight: float = 1.0


def _messages() -> list[Any]:
    """Messages with tensors in every encoding, and with all kinds of fields."""
    from farshore.core.message import Message, Tensor
    from farshore.wire.encodings import Bf16, Bits, Chain, Fp16, Int2, Int4, Int8, LowRank, Ragged, TopK

    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 8)).astype(np.float32)
    flags = rng.integers(0, 2, 13).astype(bool)
    encodings: list[Any] = [None, Fp16(), Bf16(), Int8(), Int4(), Int2(), LowRank(2), TopK(0.2)]
    encodings += [Chain(TopK(0.3), Int8()), Chain(LowRank(1), Int4()), Chain(Ragged([2, 4, 0, 8, 1, 3]), Int2())]
    tensors = [Tensor(x, encoding) for encoding in encodings]
    fields = {"what": "x", "count": 3, "share": 0.5, "flag": True, "raw": b"\x00\xff", "text": "é"}
    found = [Message("update", 3, 4, 5, {"x": tensor}, fields) for tensor in tensors]
    found.append(Message("bits", tensors={"b": Tensor(flags, Bits(1))} if hasattr(Bits, "name") else {}))
    every = {
        f"{np.dtype(d)}": Tensor(np.zeros((2, 3), d)) for d in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "?")
    }
    return [*found, Message("all", tensors=every)]


def _frames() -> list[bytes]:
    """What a connection sends for each message: greeting, frames and chunks."""
    from farshore.wire.channel import Channel
    from farshore.wire.frame import FrameType, make_prefix

    found = []
    for message in _messages():
        node = Channel("server", "edge", "node")
        node.send(message)
        connection = node.attach(lambda: None)
        connection.feed(make_prefix(FrameType.HELLO, 0, 0, 0))
        found.append(b"".join(map(bytes, connection.outgoing())))
    return found


def _feed(data: bytes) -> None:
    from farshore.wire.channel import Channel

    server = Channel("edge", "edge", "server", recorder=lambda row: None)
    connection = server.attach(lambda: None)
    connection.feed(data)
    while server.inbox.ready:
        server.receive(0)


def _packed() -> list[bytes]:
    from farshore.wire.pack import pack

    found = []
    for message in _messages():
        packed = pack(message)
        payload = b"".join(map(bytes, packed.payload))
        found.append(struct.pack("<I", len(packed.header)) + packed.header + payload)
    return found


def _unpack(data: bytes) -> None:
    from farshore.wire.pack import unpack

    size = struct.unpack_from("<I", data.ljust(4, b"\0"))[0] % (len(data) + 1)
    message = unpack(data[4 : 4 + size], memoryview(data)[4 + size :])
    for tensor in message.tensors.values():
        assert tensor.array is not None


def _control() -> list[bytes]:
    return [
        b"what=offer\0plan=x\0labels=y\0examples=3\0parameters=4\0trains=True",
        b"what=form\0group=g\0rank=1\0names=a,b",
        b"samples=3\0steps=2\0loss=0.5",
    ]


def _read_control(data: bytes) -> None:
    from farshore.algorithms.split_fine_tuning import protocol as split
    from farshore.core.message import Message
    from farshore.engines.federated import messages as federated

    def value(text: str) -> Any:
        for kind in (int, float):
            try:
                return kind(text)
            except ValueError:
                continue
        return {"True": True, "False": False}.get(text, text)

    pairs = (part.partition("=") for part in data.decode("utf-8", "replace").split("\0")[:300])
    message = Message("control", fields={name: value(text) for name, _, text in pairs})
    for each in (split.Offer, split.StepsPerEpoch, federated.Keep, federated.Declined, federated.UpdateHeader):
        try:
            each.read(message, "a peer")
        except FarshoreError:
            continue


def _texts() -> list[bytes]:
    texts = ["192.0.2.7:50051", "[::1]:50051", "cloud.example:1", "kitchen-2.x_y", "lidar=1,camera=4..8", "4+", "10m"]
    texts += [
        "a: {b: [1, 2, 'x']}\nc: &x 1\nd: *x\n",
        "link: {up_mbps: 10}\nthreads: 2\n",
        "method: vhl\narms: {a: {}}\n",
    ]
    return [text.encode() for text in texts]


def _read_text(data: bytes) -> None:
    import yaml

    from farshore.core.address import parse_address
    from farshore.core.nodes import RoleCount, check_node_name
    from farshore.core.yaml_text import load_yaml
    from farshore.simulations.scenario import parse_scenario

    text = data.decode("utf-8", "replace")
    for read in (parse_address, check_node_name, RoleCount.parse, lambda t: parse_scenario(t, "x")):
        try:
            read(text)
        except FarshoreError:
            continue
    with suppress(yaml.YAMLError):
        load_yaml(text)


class _File:
    """Decodes what is written to a file of the folder of this process, which is in memory where there is such."""

    def __init__(self, name: str, read: Callable[[Path], object]) -> None:
        self._name, self._read = name, read
        self._folder: Path | None = None

    def __call__(self, data: bytes) -> None:
        if self._folder is None:
            shared = Path("/dev/shm")
            place = shared if shared.is_dir() else None
            self._folder = Path(tempfile.mkdtemp(prefix="farshore-fuzz-", dir=place))
        path = self._folder / self._name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        self._read(path)


def _checkpoint() -> list[bytes]:
    from farshore.runs.checkpoints import CheckpointStore

    with tempfile.TemporaryDirectory() as folder:
        CheckpointStore(Path(folder)).save(3, {"x": np.arange(6.0), "n": np.arange(3)}, {"a": 1})
        return [next(Path(folder).glob("step-*")).read_bytes()]


def _load_checkpoint(path: Path) -> None:
    from farshore.runs.checkpoints import CheckpointStore

    store = CheckpointStore(path.parent)
    store.load(3)


def _states() -> list[bytes]:
    from farshore.runs.model_states import save_state

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        save_state(path, {"w": np.ones((2, 3), np.float32)}, {"round": "1"})
        return [path.read_bytes()]


def _load_state(path: Path) -> None:
    from farshore.runs.model_states import load_state

    load_state(path)


def _idx() -> list[bytes]:
    images = struct.pack(">IIII", 0x803, 2, 4, 4) + bytes(range(32))
    labels = struct.pack(">II", 0x801, 2) + b"\x01\x02"
    return [images, labels]


def _read_idx(data: bytes) -> None:
    from farshore.data.image_idx import _parse

    for dimensions in (1, 3):
        try:
            _parse(io.BytesIO(data), Path("images"), dimensions)
        except FarshoreError:
            continue


def _json_lines() -> list[bytes]:
    return [
        b'{"round":1,"acc":0.5}\n{"round":2,"missing":{"1":"late"}}\n',
        b'{"round":1,"loss":null,"cohort":[1,2]}\n{"round":2,"x":"\\u00e9"}\n',
    ]


def _read_history(path: Path) -> None:
    from farshore.runs import jsonl
    from farshore.runs.history import read_history

    list(jsonl.read(path))
    read_history(path.parent, 2)


def targets() -> list[Target]:
    """All decoders."""
    return [
        Target("frames of a connection", _frames, _feed, weight=6),
        Target("messages and encodings", _packed, _unpack, weight=6),
        Target("control messages", _control, _read_control, weight=2),
        Target("addresses, names, roles, YAML", _texts, _read_text, weight=0.5),
        Target("checkpoints", _checkpoint, _File("step-000000000003.safetensors", _load_checkpoint), weight=0.5),
        Target("model states", _states, _File("s.safetensors", _load_state), weight=0.5),
        Target("IDX images", _idx, _read_idx, weight=0.5),
        Target("JSON lines and histories", _json_lines, _File("rounds.jsonl", _read_history), weight=0.5),
    ]
