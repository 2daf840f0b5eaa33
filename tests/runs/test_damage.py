"""Damaged checkpoints and ledgers are read as they were written or rejected; nothing is silently lost."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from farshore.core.errors import StorageError
from farshore.core.transfer import Transfer
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.directory import RunDirectory
from farshore.runs.ledger import Ledger
from farshore.runs.ledger_reader import read_ledger, segments

ARRAYS = {"w": np.arange(1000, dtype=np.float32)}


def transfer(step: int = 0) -> Transfer:
    return Transfer("a", "up", "activation", "int4", 0, step, 0, 100, 10, 20, 0, 0.5)


def damage(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def newest(path: Path) -> Path:
    return max(path.glob("step-*.safetensors"))


@pytest.mark.parametrize("reopen", [True, False])
def test_steps_omits_a_checkpoint_with_one_wrong_bit(tmp_path: Path, reopen: bool) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, ARRAYS, {})
    store.save(2, ARRAYS, {})
    damage(newest(tmp_path), -7)
    if reopen:
        store = CheckpointStore(tmp_path)
    assert store.steps() == [1]
    with pytest.raises(StorageError, match="checksum"):
        store.load(2)


def test_steps_omits_a_checkpoint_with_a_changed_number_in_its_metadata(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    store.save(1, ARRAYS, {"epoch": 4})
    content = newest(tmp_path).read_bytes()
    assert content.count(b'\\"epoch\\": 4') == 1
    newest(tmp_path).write_bytes(content.replace(b'\\"epoch\\": 4', b'\\"epoch\\": 5'))
    assert store.steps() == []


def test_a_damaged_checkpoint_does_not_displace_a_valid_one(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    for step in (1, 2):
        store.save(step, ARRAYS, {})
    damage(newest(tmp_path), -7)
    store.save(3, ARRAYS, {})
    assert store.steps() == [1, 3]


KILLED_WHILE_SAVING = """
import sys
from pathlib import Path
import numpy as np
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.directory import RunDirectory
store = CheckpointStore(Path(sys.argv[1]))
store.save(1, {"w": np.ones(10)}, {})
big = {"w": np.ones(10_000_000)}
print("saving", flush=True)
store.save(2, big, {})
store.save(2, big, {})
"""


@pytest.mark.process
def test_the_partial_file_of_a_killed_save_is_removed(tmp_path: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED_WHILE_SAVING, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "saving\n"
    deadline = time.monotonic() + 60
    while not any(tmp_path.glob(".*")) and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    child.kill()
    child.wait()
    child.stdout.close()
    store = CheckpointStore(tmp_path)
    steps = store.steps()
    assert steps in ([1], [1, 2])
    store.save(3, ARRAYS, {})
    assert store.steps() == [steps[-1], 3]
    assert sorted(p.name[:4] for p in tmp_path.iterdir()) == ["step", "step"]


def test_the_error_names_a_file_that_is_not_a_ledger(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.record(transfer())
    (tmp_path / "ledger-0001.arrows").write_bytes(b"a text file with the name of a ledger segment")
    with pytest.raises(StorageError, match=r"ledger-0001.arrows is not a ledger"):
        read_ledger(tmp_path)


def test_a_ledger_with_other_columns_is_rejected(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    schema = pa.schema([("node", pa.string())])
    with pa.OSFile(str(tmp_path / "ledger-0000.arrows"), "wb") as file, pa.ipc.new_stream(file, schema):
        pass
    with pytest.raises(StorageError, match="not a ledger of this version"):
        read_ledger(tmp_path)


def test_a_truncated_segment_yields_its_complete_blocks(tmp_path: Path) -> None:
    with Ledger(tmp_path / "complete", block_rows=2, flush_seconds=60) as ledger:
        for step in range(6):
            ledger.record(transfer(step))
        ledger.flush()
    content = segments(tmp_path / "complete")[0].read_bytes()
    truncated = tmp_path / "truncated"
    truncated.mkdir()
    seen = set()
    for end in range(0, len(content) + 1, 7):
        (truncated / "ledger-0000.arrows").write_bytes(content[:end])
        steps = read_ledger(truncated)["step"].to_pylist()
        assert steps == list(range(len(steps)))
        assert len(steps) % 2 == 0
        seen.add(len(steps))
    assert seen == {0, 2, 4, 6}


def test_requested_columns_are_read_in_the_requested_order(tmp_path: Path) -> None:
    with Ledger(tmp_path) as ledger:
        ledger.record(transfer(3))
    table = read_ledger(tmp_path, ["frame_bytes", "kind", "step"])
    assert table.column_names == ["frame_bytes", "kind", "step"]
    assert table.to_pylist() == [{"frame_bytes": 20, "kind": "activation", "step": 3}]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe", b"[]", b"[" * 100_000, b"{}", b'{"id": 1, "workload": [], "config": 0, "seed": "", "nodes": 3}'],
)
def test_a_damaged_run_json_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(StorageError, match=r"run\.json is damaged"):
        RunDirectory.open(tmp_path)


@pytest.mark.parametrize("line", ['{"node": "a"}', '{"up": "x", "down": 1}', '{"up": null, "down": 1}'])
def test_a_damaged_line_of_the_socket_counts_names_the_file(tmp_path: Path, line: str) -> None:
    (tmp_path / "sockets.jsonl").write_text('{"node": "a", "epoch": 0, "up": 1, "down": 2}\n' + line + "\n")
    with pytest.raises(StorageError, match=r"sockets\.jsonl is damaged"):
        RunDirectory(tmp_path).socket_bytes()
