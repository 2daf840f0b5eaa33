"""The ledger keeps every recorded transfer, and every flushed row survives a kill."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from farshore.core.errors import ExitCode, NotFoundError, StorageError
from farshore.core.transfer import Transfer
from farshore.runs.ledger import Ledger, Sizes
from farshore.runs.ledger_reader import read_ledger, segments, totals


def transfer(i: int, node: str = "edge-1") -> Transfer:
    direction: Any = "up" if i % 3 else "down"
    kind = ("activation", "gradient", "ack")[i % 3]
    encoding = f"ragged|int{4 + 4 * (i % 2)}"
    return Transfer(
        node, direction, kind, encoding, i // 9, i // 3, i % 3, 100 * i, 10 * i, 10 * i + 40, 0, 1e9 + i / 8
    )


def test_rows_are_read_as_they_were_recorded(tmp_path: Path) -> None:
    rows = [transfer(i, f"edge-{i % 5}") for i in range(1000)]
    rows.append(Transfer("éâ", "up", "x", "raw", 2**40, -1, 0, 2**62, 0, 0, 7, 0.1))
    with Ledger(tmp_path, block_rows=64) as ledger:
        for row in rows:
            ledger.record(row)
    table = read_ledger(tmp_path)
    assert [Transfer(**values) for values in table.to_pylist()] == rows
    for name in ("node", "direction", "kind", "encoding"):
        assert pa.types.is_dictionary(table.schema.field(name).type)
    assert table.schema.field("time").type == pa.float64()
    assert table.schema.field("dense_bytes").type == pa.int64()


def test_a_full_block_is_written_without_a_flush(tmp_path: Path) -> None:
    with Ledger(tmp_path, block_rows=10, flush_seconds=3600) as ledger:
        for i in range(25):
            ledger.record(transfer(i))
        _eventually(lambda: read_ledger(tmp_path).num_rows >= 20)
        assert read_ledger(tmp_path).num_rows == 20


def test_a_row_is_written_after_flush_seconds_at_the_latest(tmp_path: Path) -> None:
    with Ledger(tmp_path, flush_seconds=0.05) as ledger:
        for i in range(3):  # the thread waits again after each write
            ledger.record(transfer(i))
            _eventually(lambda i=i: read_ledger(tmp_path).num_rows == i + 1)


def test_flushed_rows_are_readable_at_once(tmp_path: Path) -> None:
    with Ledger(tmp_path, flush_seconds=3600) as ledger:
        for i in range(7):
            ledger.record(transfer(i))
        assert read_ledger(tmp_path).num_rows == 0
        ledger.flush()
        assert read_ledger(tmp_path).num_rows == 7


def test_four_threads_lose_nothing(tmp_path: Path) -> None:
    count = 5000

    def work(name: str, ledger: Ledger) -> None:
        for i in range(count):
            ledger.record(transfer(i, name))
            if i % 1000 == 0:
                ledger.flush()

    with Ledger(tmp_path, block_rows=128, flush_seconds=0.001) as ledger:
        names = [f"edge-{n}" for n in range(4)]
        threads = [threading.Thread(target=work, args=(name, ledger), name=name) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        live = ledger.totals
    table = read_ledger(tmp_path)
    for name in names:
        mine = [Transfer(**v) for v in table.filter(pc.equal(table["node"], name)).to_pylist()]
        assert mine == [transfer(i, name) for i in range(count)], "each thread's rows, in its order"
    assert live.up.frames + live.down.frames == 4 * count
    by = {row.pop("direction"): row for row in totals(table, ["direction"]).to_pylist()}
    assert asdict(live.up) == by["up"]
    assert asdict(live.down) == by["down"]


def test_running_totals_include_pending_rows(tmp_path: Path) -> None:
    with Ledger(tmp_path, block_rows=4, flush_seconds=3600) as ledger:
        assert ledger.totals.up == Sizes()
        for i in range(7):
            ledger.record(transfer(i))
        up = [i for i in range(7) if i % 3]
        assert ledger.totals.up == Sizes(len(up), 100 * sum(up), 10 * sum(up), 10 * sum(up) + 40 * len(up))
        assert ledger.totals.down == Sizes(3, 100 * 9, 10 * 9, 10 * 9 + 120)


def test_a_resumed_run_opens_the_next_segment(tmp_path: Path) -> None:
    (tmp_path / "ledger-notes.txt").touch()
    for start in (0, 5, 10):
        with Ledger(tmp_path) as ledger:
            for i in range(start, start + 5):
                ledger.record(transfer(i, f"edge-{start}"))
    assert [p.name for p in segments(tmp_path)] == [f"ledger-{n:04d}.arrows" for n in range(3)]
    assert read_ledger(tmp_path)["step"].to_pylist() == [i // 3 for i in range(15)]
    assert totals(read_ledger(tmp_path), ["node"])["frames"].to_pylist() == [5, 5, 5]


@pytest.mark.process
def test_flushed_rows_survive_a_kill(tmp_path: Path) -> None:
    script = f"""
import pathlib
from farshore.core.transfer import Transfer
from farshore.runs.ledger import Ledger
ledger = Ledger(pathlib.Path({str(tmp_path)!r}), block_rows=50, flush_seconds=3600)
i = 0
while True:
    for _ in range(120):
        kind = f"kind-{{i // 1000}}"
        ledger.record(Transfer(f"edge-{{i % 50}}", "up", kind, "raw", 0, i, 0, 3 * i, 2 * i, i, 0, 0.0))
        i += 1
    ledger.flush()
    print(i, flush=True)
"""
    with subprocess.Popen([sys.executable, "-P", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(30):
            flushed = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        flushed = max([flushed, *map(int, process.stdout.read().split())])
    with Ledger(tmp_path) as resumed:
        resumed.record(transfer(1))
    steps = read_ledger(tmp_path)["step"].to_pylist()[:-1]
    assert len(steps) >= flushed
    assert steps == list(range(len(steps)))


def test_a_truncated_segment_yields_its_complete_blocks(tmp_path: Path) -> None:
    with Ledger(tmp_path, block_rows=20) as ledger:
        for i in range(100):
            ledger.record(transfer(i, f"edge-{i // 20}"))
    (path,) = segments(tmp_path)
    content = path.read_bytes()
    seen = set()
    for size in (*random.Random(0).sample(range(len(content)), 150), len(content) - 1):
        path.write_bytes(content[:size])
        table = read_ledger(tmp_path)
        assert table.num_rows % 20 == 0
        assert [Transfer(**v) for v in table.to_pylist()] == [transfer(i, f"edge-{i // 20}") for i in range(len(table))]
        seen.add(table.num_rows)
    assert seen == {0, 20, 40, 60, 80, 100}


def test_rows_stay_pending_while_the_disk_is_full_and_are_written_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = threading.Event()
    write = os.write

    def fail(file: int, data: bytes) -> int:
        if full.is_set():
            if len(data) > 200:  # a full disk accepts the beginning of a block
                return write(file, bytes(data[:100]))
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data)

    monkeypatch.setattr(os, "write", fail)
    with Ledger(tmp_path, block_rows=10, flush_seconds=0.01) as ledger:
        for i in range(30):
            ledger.record(transfer(i))
        full.set()
        for i in range(30, 95):
            ledger.record(transfer(i))
        with pytest.raises(StorageError, match="No space left") as caught:
            ledger.flush()
        assert caught.value.exit_code == ExitCode.STORAGE
        assert "free some space" in caught.value.hint
        assert ledger.totals.up.frames + ledger.totals.down.frames == 95
        full.clear()
        ledger.flush()
        assert [Transfer(**v) for v in read_ledger(tmp_path).to_pylist()] == [transfer(i) for i in range(95)]


def test_record_raises_when_too_many_blocks_are_pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(tmp_path, block_rows=2, flush_seconds=3600)

    def fail(_file: int, _data: bytes) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fail)
        with pytest.raises(StorageError, match="No space left"):
            _record(ledger, 1000)
    ledger.close()


def test_a_closed_ledger_rejects_rows_and_has_no_thread(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert any(t.name == "ledger" for t in threading.enumerate())
    ledger.close()
    ledger.close()
    assert not any(t.name == "ledger" for t in threading.enumerate())
    with pytest.raises(StorageError, match="closed"):
        ledger.record(transfer(0))


def test_totals_group_by_any_columns(tmp_path: Path) -> None:
    assert totals(_empty(tmp_path)).to_pylist() == [
        {"frames": 0, "dense_bytes": 0, "payload_bytes": 0, "frame_bytes": 0}
    ]
    assert totals(_empty(tmp_path), ["node"]).num_rows == 0
    rows = [transfer(i, f"edge-{i % 2}") for i in range(60)]
    with Ledger(tmp_path, block_rows=7) as ledger:
        for row in rows:
            ledger.record(row)
    table = read_ledger(tmp_path)
    for by in ([], ["node"], ["kind", "node"], ["direction", "encoding", "round"]):
        expected: dict[tuple[Any, ...], list[int]] = {}
        for row in rows:
            sums = expected.setdefault(tuple(getattr(row, name) for name in by), [0, 0, 0, 0])
            for i, more in enumerate((1, row.dense_bytes, row.payload_bytes, row.frame_bytes)):
                sums[i] += more
        got = totals(table, by)
        assert got.column_names == [*by, "frames", "dense_bytes", "payload_bytes", "frame_bytes"]
        assert [tuple(v.values()) for v in got.to_pylist()] == [(*k, *v) for k, v in sorted(expected.items())]


def test_a_missing_directory_and_a_file_in_its_place_raise_errors(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nowhere"):
        read_ledger(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot create the directory"):
        Ledger(tmp_path / "file" / "below")


def test_recording_does_not_load_pandas(tmp_path: Path) -> None:
    # pa.array() imports pandas if it is installed, which would take seconds in the middle of a run.
    pytest.importorskip("pandas")
    script = f"""
import pathlib, sys
from farshore.core.transfer import Transfer
from farshore.runs.ledger import Ledger
with Ledger(pathlib.Path({str(tmp_path)!r})) as ledger:
    ledger.record(Transfer("edge", "up", "activation", "raw", 0, 0, 0, 1, 1, 1, 0, 0.5))
print("pandas" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
    assert read_ledger(tmp_path).num_rows == 1


def test_a_ledger_of_another_version_is_rejected(tmp_path: Path) -> None:
    schema = pa.schema([("x", pa.int64())])
    with pa.OSFile(str(tmp_path / "ledger-0000.arrows"), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        writer.write_table(pa.table({"x": [1]}))
    with pytest.raises(StorageError, match="not a ledger of this version"):
        read_ledger(tmp_path)


def _record(ledger: Ledger, count: int) -> None:
    for i in range(count):
        ledger.record(transfer(i))


def _empty(tmp_path: Path) -> pa.Table:
    return read_ledger(tmp_path)


def _eventually(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.01)
