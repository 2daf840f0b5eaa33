"""Frames and chunks: round trips, corrupted and hostile input, copies."""

from __future__ import annotations

import contextlib
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farshore.core.errors import WireError
from farshore.wire.chunks import CHUNK_BYTES, SLACK_BYTES, Assembler, cut
from farshore.wire.frame import PREFIX_BYTES, FrameType, make_prefix, read_prefix
from farshore.wire.limits import Limits

SMALL = Limits(header_bytes=1000, payload_bytes=4000)
frames = st.lists(
    st.tuples(st.binary(max_size=50), st.lists(st.binary(max_size=300), max_size=4)), min_size=1, max_size=5
)


def _frame(header: bytes, payload: list[bytes], sequence: int = 1, **options: Any) -> tuple[bytes, ...]:
    prefix = make_prefix(FrameType.DATA, 3, sequence, 9, header, payload)
    return cut(prefix, header, payload, **options)


def _read(chunks: list[bytes], limits: Limits = SMALL) -> list[tuple[int, bytes]]:
    assembler = Assembler(lambda: limits)
    return [(prefix.sequence, bytes(body)) for chunk in chunks for prefix, body in assembler.feed(chunk)]


@given(frames, st.integers(1, 200), st.data())
def test_frames_survive_any_division_into_chunks(
    sent: list[tuple[bytes, list[bytes]]], chunk_bytes: int, data: st.DataObject
) -> None:
    chunks = [c for i, (h, p) in enumerate(sent, 1) for c in _frame(h, p, i, chunk_bytes=chunk_bytes)]
    whole = b"".join(chunks)
    expected = [(i, h + b"".join(p)) for i, (h, p) in enumerate(sent, 1)]
    assert _read(chunks) == expected
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=8)))
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    assert _read(pieces) == expected


@given(st.binary(max_size=60), st.lists(st.binary(max_size=200), max_size=3), st.data())
def test_a_flipped_bit_is_always_detected(header: bytes, payload: list[bytes], data: st.DataObject) -> None:
    whole = bytearray(b"".join(_frame(header, payload)))
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    whole[bit // 8] ^= 1 << bit % 8
    assembler = Assembler(lambda: SMALL)
    try:
        got = list(assembler.feed(bytes(whole)))
        assert not got  # the frame appears longer: nothing is delivered, and the missing rest is detected
        assembler.end()
    except WireError:
        return
    pytest.fail("a corrupted frame was accepted")


@given(st.binary(max_size=60), st.binary(max_size=200), st.data())
def test_a_truncated_frame_is_detected(header: bytes, payload: bytes, data: st.DataObject) -> None:
    whole = b"".join(_frame(header, [payload]))
    end = data.draw(st.integers(1, len(whole) - 1))
    assembler = Assembler(lambda: SMALL)
    assert list(assembler.feed(whole[:end])) == []
    with pytest.raises(WireError, match="middle of a frame"):
        assembler.end()


@settings(max_examples=300)
@given(st.lists(st.binary(max_size=300), max_size=6))
def test_noise_never_yields_a_frame(noise: list[bytes]) -> None:
    with contextlib.suppress(WireError):
        assert _read(noise) == []


@given(st.binary(min_size=PREFIX_BYTES - 4, max_size=PREFIX_BYTES + 40))
def test_noise_after_the_magic_never_yields_a_frame(noise: bytes) -> None:
    with contextlib.suppress(WireError):
        assert _read([b"FSH1" + noise]) == []


@pytest.mark.parametrize(
    ("header", "payload"), [(SMALL.header_bytes + 1, 0), (0, SMALL.payload_bytes + 1), (0, 1 << 62)]
)
def test_an_oversized_frame_is_rejected_before_memory_is_allocated(header: int, payload: int) -> None:
    prefix = bytearray(make_prefix(FrameType.DATA, 0, 1, 0))
    prefix[8:12] = header.to_bytes(4, "little")
    prefix[12:20] = payload.to_bytes(8, "little")
    tracemalloc.start()
    with pytest.raises(WireError, match="the limits are"):
        list(Assembler(lambda: SMALL).feed(bytes(prefix)))
    assert tracemalloc.get_traced_memory()[1] < 50_000
    tracemalloc.stop()


def test_announcing_a_large_frame_costs_no_memory() -> None:
    import psutil

    prefix = bytearray(make_prefix(FrameType.DATA, 0, 1, 0))
    prefix[12:20] = (1 << 30).to_bytes(8, "little")
    before = psutil.Process().memory_info().rss
    assemblers = [Assembler() for _ in range(3)]
    for assembler in assemblers:
        list(assembler.feed(bytes(prefix) + b"x"))
    assert psutil.Process().memory_info().rss - before < 100 << 20


@pytest.mark.parametrize(
    "prefix",
    [
        make_prefix(FrameType.DATA, 0, 0, 0),
        make_prefix(FrameType.ACK, 0, 1, 0),
        make_prefix(FrameType.ACK, 0, 0, 0, b"", [b"x"]),
        make_prefix(FrameType.BYE, 0, 0, 0, bytes(1025)),
    ],
    ids=["unnumbered data", "numbered ack", "ack with payload", "long goodbye"],
)
def test_inconsistent_prefixes_are_rejected(prefix: bytes) -> None:
    with pytest.raises(WireError):
        read_prefix(prefix)


@pytest.mark.parametrize(
    ("size", "count"),
    [
        (0, 1),
        (CHUNK_BYTES, 1),
        (CHUNK_BYTES + SLACK_BYTES - PREFIX_BYTES, 1),
        (CHUNK_BYTES + SLACK_BYTES, 2),
        (5 * CHUNK_BYTES, 6),
    ],
)
def test_chunks_are_about_a_mebibyte(size: int, count: int) -> None:
    chunks = _frame(b"", [bytes(size)])
    assert len(chunks) == count
    assert all(len(c) == CHUNK_BYTES for c in chunks[:-1])
    assert len(chunks[-1]) <= CHUNK_BYTES + SLACK_BYTES


def test_a_frame_in_one_chunk_is_not_copied() -> None:
    (chunk,) = _frame(b"header", [bytes(1000)])
    ((_, body),) = Assembler().feed(chunk)
    assert body.obj is chunk
    assert body.readonly


def test_chunks_are_copies_of_the_payload() -> None:
    array = np.zeros(3 * CHUNK_BYTES, np.uint8)
    chunks = _frame(b"", [array.data])
    array[:] = 1
    assert not any(any(chunk[PREFIX_BYTES:]) for chunk in chunks)


def test_a_frame_for_which_there_is_no_memory_is_refused_like_a_bad_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """A limit of the payload may be above what the process may use; the connection must end, and nothing else."""

    def no_memory(size: int, dtype: Any) -> Any:
        raise MemoryError

    prefix = make_prefix(FrameType.DATA, 3, 1, 9, b"", [b"x" * 3000])
    assembler = Assembler(lambda: SMALL)
    monkeypatch.setattr(np, "empty", no_memory)
    with pytest.raises(WireError, match="no memory for a frame of 3000 bytes"):
        list(assembler.feed(prefix + b"x"))
