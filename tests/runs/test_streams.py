"""Record streams grow, survive a kill, and are truncated to the lengths that a checkpoint stores."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from farshore.core.errors import StorageError
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.state_store import StateStore
from farshore.runs.streams import MAGIC, RecordStream, StreamStore


def record(number: int) -> dict[str, Any]:
    return {"n": np.array(number), "x": np.full((number % 5, 2), number, np.float32)}


def numbers(stream: RecordStream) -> list[int]:
    found = []
    for got in stream:
        n = int(got["n"])
        assert np.array_equal(got["x"], record(n)["x"])
        found.append(n)
    return found


def store(folder: Path) -> StateStore:
    return StateStore(CheckpointStore(folder / "checkpoints"), folder / "streams")


def test_records_are_read_in_order_and_by_index(tmp_path: Path) -> None:
    stream = RecordStream(tmp_path / "a.records")
    assert [stream.append(record(n)) for n in range(10)] == list(range(10))
    assert numbers(stream) == list(range(10))
    assert int(stream.read(7)["n"]) == 7
    with pytest.raises(IndexError):
        stream.read(10)
    stream.close()
    assert numbers(RecordStream(tmp_path / "a.records")) == list(range(10))


@settings(max_examples=40, deadline=None)
@given(count=st.integers(1, 6), torn=st.integers(1, 200))
def test_a_truncated_file_loses_only_the_truncated_records(
    tmp_path_factory: pytest.TempPathFactory, count: int, torn: int
) -> None:
    path = tmp_path_factory.mktemp("s") / "a.records"
    stream = RecordStream(path)
    sizes = [len(MAGIC)]
    for n in range(count):
        stream.append(record(n))
        sizes.append(path.stat().st_size)
    stream.close()
    size = max(0, sizes[-1] - torn)
    with path.open("r+b") as file:
        file.truncate(size)
    again = RecordStream(path)
    complete = max(sum(s <= size for s in sizes) - 1, 0)
    assert numbers(again) == list(range(complete))
    again.append(record(99))
    again.close()
    assert numbers(RecordStream(path)) == [*range(complete), 99]


def test_reading_detects_a_changed_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.records"
    stream = RecordStream(path)
    for n in (4, 3):
        stream.append(record(n))
    stream.close()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    stream = RecordStream(path)
    assert int(stream.read(0)["n"]) == 4
    with pytest.raises(StorageError, match="is damaged"):
        stream.read(1)


def test_a_file_that_is_not_a_stream_is_rejected_and_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "a.records"
    path.write_bytes(b"something else")
    with pytest.raises(StorageError, match="not a stream"):
        RecordStream(path)
    assert path.read_bytes() == b"something else"


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".hidden", "x" * 65, "a\0"])
def test_a_name_cannot_leave_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match="cannot be called"):
        StreamStore(tmp_path).stream(name)


def test_resuming_truncates_streams_to_the_lengths_of_the_checkpoint(tmp_path: Path) -> None:
    first = store(tmp_path)
    for n in range(7):
        first.append("replay", record(n))
    first.save(10, {"w": np.ones(2)}, {"epoch": 3})
    for n in range(7, 12):
        first.append("replay", record(n))
        first.append("late", record(n))
    first.close()
    again = store(tmp_path)
    assert len(again.stream("replay")) == 12
    again.begin(10)
    assert numbers(again.stream("replay")) == list(range(7))
    assert len(again.stream("late")) == 0
    assert again.load(10)[1] == {"epoch": 3}, "the lengths do not appear in the program's metadata"
    again.begin(None)
    assert len(again.stream("replay")) == 0


def test_resuming_from_a_checkpoint_without_lengths_empties_the_streams(tmp_path: Path) -> None:
    CheckpointStore(tmp_path / "checkpoints").save(5, {}, {"a": 1})
    kept = store(tmp_path)
    kept.append("replay", record(1))
    kept.begin(5)
    assert len(kept.stream("replay")) == 0
    assert kept.load(5)[1] == {"a": 1}


def test_a_stream_that_lost_records_is_rejected(tmp_path: Path) -> None:
    kept = store(tmp_path)
    for n in range(3):
        kept.append("replay", record(n))
    kept.save(1, {}, {})
    kept.close()
    (tmp_path / "streams" / "replay.records").unlink()
    with pytest.raises(StorageError, match="0 records where the checkpoint needs 3"):
        store(tmp_path).begin(1)


KILLED = """
    import os, sys, signal
    from pathlib import Path
    import numpy as np
    from farshore.runs.checkpoints import CheckpointStore
    from farshore.runs.state_store import StateStore
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])
    store = StateStore(CheckpointStore(folder / "checkpoints"), folder / "streams")
    done = max(store.steps(), default=None)
    store.begin(done)
    for step in range((done or 0) + 1, 101):
        for n in range(100):
            store.append("replay", {"n": np.array(100 * (step - 1) + n)})
            if 100 * (step - 1) + n == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
        if step % 7 == 0 or step == 100:
            store.save(step, {"step": np.array(step)}, {})
"""


def test_ten_thousand_records_survive_kills_without_gaps_or_duplicates(tmp_path: Path) -> None:
    for kill_at in (1234, 777, 6999, 7000, 9998, -1):
        subprocess.run(
            [sys.executable, "-P", "-c", textwrap.dedent(KILLED), str(tmp_path), str(kill_at)], timeout=60, check=False
        )
    assert numbers_only(tmp_path) == list(range(10_000))


def numbers_only(folder: Path) -> list[int]:
    return [int(r["n"]) for r in store(folder).stream("replay")]


def test_a_run_that_starts_over_keeps_its_streams_until_the_new_attempt_has_passed_them(tmp_path: Path) -> None:
    folder = tmp_path
    store = StateStore(CheckpointStore(folder / "checkpoints"), folder / "streams")
    for step in (1, 2):
        store.append("replay", {"x": np.full(3, step, np.float32)})
        store.save(step, {}, {})
    store.close()
    store = StateStore(CheckpointStore(folder / "checkpoints"), folder / "streams")
    assert not store.started_over
    store.begin(None)
    assert store.started_over
    assert len(store.stream("replay")) == 0
    store.append("replay", {"x": np.zeros(3, np.float32)})
    store.save(1, {}, {})
    kept = StateStore(CheckpointStore(folder / "checkpoints" / "superseded"), folder / "checkpoints/superseded/streams")
    kept.begin(2)
    assert [record["x"].tolist() for record in kept.stream("replay")] == [[1.0] * 3, [2.0] * 3]
    kept.close()
    store.save(2, {}, {})
    assert not store.started_over
    assert len(store.stream("replay")) == 1
