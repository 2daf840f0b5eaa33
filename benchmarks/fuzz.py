"""Mutated inputs for every decoder, at the real limits and in little memory: only typed errors, no crash, no stall.

Each target starts from valid inputs of its own and mutates them: bits and bytes flipped, slices cut, doubled, moved and
spliced, lengths replaced by extreme numbers. A child process decodes them under a limit on its memory. Wrong is an
exception of another type than the decoder documents, the death of the process, or more than a second for one input.

    python benchmarks/fuzz.py --inputs 10_000_000 --json fuzz.json
"""

from __future__ import annotations

import io
import multiprocessing
import os
import random
import resource
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _common import Table, finish, gate, parser

from farshore.core.errors import FarshoreError

CLAIM = "every decoder answers any input with a message or a typed error, within a gigabyte and a second"
#: Memory that a child may allocate beyond what it has after its imports.
_MEMORY = 1 << 30
_SLOWEST_SECONDS = 1.0
_EXTREMES = [
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x7FFF,
    0xFFFF,
    1 << 20,
    0x7FFFFFFF,
    0xFFFFFFFF,
    1 << 40,
    (1 << 63) - 1,
    (1 << 64) - 1,
]


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


def mutate(data: bytes, others: Sequence[bytes], rng: random.Random) -> bytes:
    """Return a variant of ``data`` after one to four mutations."""
    found = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        size = len(found)
        at = rng.randrange(size + 1)
        match rng.randrange(9):
            case 0 if size:
                found[at % size] ^= 1 << rng.randrange(8)
            case 1 if size:
                found[at % size] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                del found[at : at + rng.choice((1, 2, 7, 64, 1000))]
            case 3:
                found[at:at] = found[at : at + rng.choice((1, 4, 64))]
            case 4:
                found[at:at] = rng.randbytes(rng.choice((1, 2, 8, 100)))
            case 5:
                form = rng.choice(("<H", "<I", "<Q", ">I", ">Q"))
                width = struct.calcsize(form)
                found[at : at + width] = struct.pack(form, rng.choice(_EXTREMES) & ((1 << 8 * width) - 1))
            case 6:
                other = rng.choice(others)
                start = rng.randrange(len(other) + 1)
                found[at : at + 50] = other[start : start + rng.choice((10, 100, 1000))]
            case 7:
                del found[at:]
            case _:
                cut = rng.randrange(size + 1)
                found = found[cut:] + found[:cut]
    return bytes(found)


# ---- targets ---------------------------------------------------------------------------------------------------------


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
    with suppress(yaml.YAMLError, ValueError, RecursionError, FarshoreError):
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


# ---- running ---------------------------------------------------------------------------------------------------------


def _limit_memory() -> None:
    used = os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (used + _MEMORY, used + _MEMORY))


def _child(index: int, name: str, count: int, seed: int, pipe: Any) -> None:
    """Decode ``count`` mutated inputs of one target; sends figures, or the input at which it failed."""
    target = targets()[index]
    corpus = list(target.corpus())
    for data in corpus:
        target.decode(data)  # valid, and imports what it needs
    _limit_memory()
    rng, refused, slowest = random.Random(seed), 0, 0.0
    last = b""
    try:
        for number in range(count):
            last = mutate(rng.choice(corpus), corpus, rng)
            start = time.perf_counter()
            try:
                target.decode(last)
            except target.errors:
                refused += 1
            slowest = max(slowest, time.perf_counter() - start)
            if number % 10_000 == 0:
                pipe.send({"alive": number})
    except BaseException as error:
        pipe.send({"wrong": f"{type(error).__name__}: {error}"[:300], "input": last[:2000].hex(), "count": number})
        return
    pipe.send({"count": count, "refused": refused, "slowest": slowest})


def _run(index: int, target: Target, count: int, seed: int) -> dict[str, Any]:
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    process = context.Process(target=_child, args=(index, target.name, count, seed, theirs), daemon=True)
    process.start()
    theirs.close()
    result: dict[str, Any] = {"count": 0, "wrong": "the process died"}
    try:
        while "alive" in (message := mine.recv()):
            pass
        result = message
    except EOFError:
        process.join()
        result["wrong"] = f"the process died (exit code {process.exitcode})"
    process.join()
    return result


def run(inputs: int) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Fuzz every target in turn; yields its figures."""
    every = targets()
    weight = sum(target.weight for target in every)
    for index, target in enumerate(every):
        count = max(100, round(inputs * target.weight / weight))
        start = time.monotonic()
        found = _run(index, target, count, seed=index)
        found["seconds"] = time.monotonic() - start
        print(f"{target.name}: {found}"[:400], flush=True)
        yield target, found


def main() -> int:
    """Fuzz and report."""
    cli = parser(__doc__)
    cli.add_argument("--inputs", type=int, default=10_000_000, help="mutated inputs of all decoders together")
    options = cli.parse_args()
    found = list(run(20_000 if options.quick else options.inputs))
    total = sum(result["count"] for _, result in found)
    wrong = [f"{target.name}: {result['wrong']}" for target, result in found if "wrong" in result]
    slowest = max((result.get("slowest", 0.0) for _, result in found), default=0.0)
    rows = [
        [
            t.name,
            f"{r['count']:,}",
            f"{r.get('refused', 0):,}",
            f"{1000 * r.get('slowest', 0):.0f}",
            r.get("wrong", "–"),
        ]
        for t, r in found
    ]
    return finish(
        "fuzz",
        options,
        scale=f"{total:,} inputs, {_MEMORY >> 20} MiB of memory for each process",
        claim=CLAIM,
        figures={"targets": [{"name": t.name, **r} for t, r in found]},
        gates=[
            gate("inputs", total, ">= 10,000,000", None if options.quick else total >= 9_900_000),
            gate("decoders that died or raised another error", len(wrong), "= 0", not wrong),
            gate("slowest input, seconds", slowest, f"<= {_SLOWEST_SECONDS:g}", slowest <= _SLOWEST_SECONDS),
        ],
        tables=[Table("Mutated inputs", ["decoder", "inputs", "refused", "slowest, ms", "wrong"], rows)],
    )


if __name__ == "__main__":
    sys.exit(main())
