"""Checkpoints are loaded bit for bit and written atomically; a failed save keeps the older ones."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from farshore.core.errors import ExitCode, StorageError
from farshore.runs import files
from farshore.runs.checkpoints import CheckpointStore


def tensors(step: int) -> dict[str, np.ndarray]:
    return {"w": np.arange(60, dtype=np.float32).reshape(3, 20) + step, "step": np.array(step)}


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints")


def path_of(store: CheckpointStore, step: int) -> Path:
    return store._file(step)


def test_every_dtype_and_shape_is_loaded_bit_for_bit(store: CheckpointStore) -> None:
    rng = np.random.default_rng(0)
    kinds = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
    saved = {kind: np.frombuffer(rng.bytes(64), kind).copy() for kind in kinds if kind != "?"}
    saved["?"] = np.array([[True], [False]])
    saved |= {"scalar": np.array(3.5), "empty": np.zeros((0, 4), np.float32), "nan": np.array([np.nan, -0.0, np.inf])}
    saved["transposed"] = np.arange(12.0).reshape(3, 4).T
    saved["strided"] = np.arange(20)[::3]
    store.save(7, saved, {"epoch": 2, "nested": {"losses": [0.5, 0.25]}, "name": "naïve"})
    loaded, meta = store.load(7)
    assert meta == {"epoch": 2, "nested": {"losses": [0.5, 0.25]}, "name": "naïve"}
    assert loaded.keys() == saved.keys()
    for name, array in saved.items():
        assert loaded[name].dtype == array.dtype, name
        assert loaded[name].shape == array.shape, name
        assert loaded[name].tobytes() == np.ascontiguousarray(array).tobytes(), name


def test_a_checkpoint_is_an_ordinary_safetensors_file(store: CheckpointStore) -> None:
    store.save(1, tensors(1), {})
    np.testing.assert_array_equal(load_file(path_of(store, 1))["w"], tensors(1)["w"])


def test_the_two_newest_are_kept(store: CheckpointStore) -> None:
    assert store.steps() == []
    for step in (0, 10, 9_999_999_999_999, 10_000_000_000_000):
        store.save(step, tensors(step), {"step": step})
    assert store.steps() == [9_999_999_999_999, 10_000_000_000_000]
    assert len(list(path_of(store, 0).parent.iterdir())) == 2


def test_saving_an_earlier_step_sets_checkpoints_of_later_steps_aside(store: CheckpointStore) -> None:
    for step in (10, 20):
        store.save(step, tensors(step), {})
    store.save(15, tensors(15), {})
    assert store.steps() == [10, 15]
    assert [path.name for path in store.superseded.iterdir()] == [path_of(store, 20).name]


def test_what_was_set_aside_is_kept_until_a_new_attempt_has_passed_it(store: CheckpointStore) -> None:
    for step in (110, 120):
        store.save(step, tensors(step), {"attempt": 0})
    assert store.set_aside(None) == [110, 120]
    assert store.steps() == []
    for step in (10, 20, 110):
        store.save(step, tensors(step), {"attempt": 1})
    kept = CheckpointStore(store.superseded)
    assert kept.steps() == [110, 120]
    assert kept.load(120)[1] == {"attempt": 0}
    store.save(120, tensors(120), {"attempt": 1})
    assert store.steps() == [110, 120]
    assert not store.superseded.exists()


def test_saving_a_step_again_replaces_it(store: CheckpointStore) -> None:
    store.save(1, tensors(1), {"attempt": 0})
    store.save(1, tensors(2), {"attempt": 1})
    loaded, meta = store.load(1)
    assert meta == {"attempt": 1}
    np.testing.assert_array_equal(loaded["w"], tensors(2)["w"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("point", ["write", "fsync", "rename"])
def test_a_failed_write_raises_an_error_and_keeps_older_checkpoints(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch, point: str, number: int
) -> None:
    for step in (1, 2):
        store.save(step, tensors(step), {})

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        if point == "write":
            patch.setattr("farshore.runs.checkpoints.save_file", fail)
        elif point == "fsync":
            patch.setattr(os, "fsync", fail)
        else:
            patch.setattr(Path, "replace", fail)
        with pytest.raises(StorageError, match=os.strerror(number)) as caught:
            store.save(3, tensors(3), {})
    assert caught.value.exit_code == ExitCode.STORAGE
    assert ("free some space" in caught.value.hint) == (number == errno.ENOSPC)
    assert store.steps() == [1, 2]
    np.testing.assert_array_equal(store.load(1)[0]["w"], tensors(1)["w"])
    assert len(list(path_of(store, 1).parent.iterdir())) == 2, "no partial file is left"


def test_a_full_disk_reported_by_the_library_gives_the_same_hint(
    store: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def fail(*_: object, **__: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("farshore.runs.checkpoints.save_file", fail)
    with pytest.raises(StorageError) as caught:
        store.save(3, tensors(3), {})
    assert "free some space" in caught.value.hint


def test_a_write_beyond_the_file_size_limit_raises_an_error(tmp_path: Path) -> None:
    # In a separate process, because the file size limit applies to the whole process.
    script = f"""
import resource, signal, pathlib, numpy as np
from farshore.core.errors import StorageError
from farshore.runs.checkpoints import CheckpointStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
store = CheckpointStore(pathlib.Path({str(tmp_path)!r}))
store.save(1, {{"w": np.zeros(8)}}, {{}})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    store.save(2, {{"w": np.zeros(100_000)}}, {{}})
except StorageError as error:
    assert store.steps() == [1], store.steps()
    print("raised:", error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.startswith("raised:"), done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["step-000000000001.safetensors"]


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.05, 0.5, 0.999])
def test_a_truncated_checkpoint_is_skipped(store: CheckpointStore, keep: float) -> None:
    for step in (1, 2):
        store.save(step, tensors(step), {})
    path = path_of(store, 2)
    os.truncate(path, int(path.stat().st_size * keep))
    assert store.steps() == [1]
    with pytest.raises(StorageError, match="damaged"):
        store.load(2)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        (10).to_bytes(8, "little") + b"[1, 2, 3]!",
        (2).to_bytes(8, "little") + b"{}",
        (20).to_bytes(8, "little") + b'{"__metadata__": 3} ',
        (60).to_bytes(8, "little") + json.dumps({"__metadata__": {"meta": "{}"}, "w": {}}).ljust(60).encode(),
    ],
)
def test_files_that_are_not_checkpoints_are_skipped(store: CheckpointStore, content: bytes) -> None:
    store.save(1, tensors(1), {})
    path_of(store, 2).write_bytes(content)
    assert store.steps() == [1]
    with pytest.raises(StorageError, match="damaged"):
        store.load(2)


def test_loading_detects_a_flipped_bit(store: CheckpointStore) -> None:
    store.save(1, tensors(1), {})
    content = bytearray(path_of(store, 1).read_bytes())
    content[-5] ^= 1
    path_of(store, 1).write_bytes(content)
    with pytest.raises(StorageError, match="checksum"):
        store.load(1)


def test_loading_detects_changed_metadata(store: CheckpointStore) -> None:
    store.save(1, tensors(1), {"rate": 123})
    content = path_of(store, 1).read_bytes()
    assert content.count(b"123") == 1
    path_of(store, 1).write_bytes(content.replace(b"123", b"124"))
    with pytest.raises(StorageError, match="checksum"):
        store.load(1)


def test_saving_removes_partial_files_of_killed_writers(store: CheckpointStore) -> None:
    store.save(1, tensors(1), {})
    folder = path_of(store, 1).parent
    for name in (".step-000000000002.safetensors.tmp", ".tmpA1b2C3"):
        (folder / name).write_bytes(b"partial")
    store.save(3, tensors(3), {})
    assert sorted(p.name for p in folder.iterdir()) == [path_of(store, s).name for s in (1, 3)]


def test_the_error_for_a_missing_checkpoint_lists_the_available_steps(store: CheckpointStore) -> None:
    store.save(4, tensors(4), {})
    with pytest.raises(StorageError, match=r"no checkpoint of step 5 .*available steps: 4"):
        store.load(5)


def test_pruning_does_not_count_damaged_checkpoints(store: CheckpointStore) -> None:
    for step in (1, 2):
        store.save(step, tensors(step), {})
    os.truncate(path_of(store, 2), 20)
    store.save(3, tensors(3), {})
    assert store.steps() == [1, 3]


def test_saving_an_unsupported_dtype_names_the_array(store: CheckpointStore) -> None:
    for array in (np.array(["text"]), np.array([object()]), np.array(["2020-01-01"], "M8[D]")):
        with pytest.raises(StorageError, match="cannot checkpoint 'odd'"):
            store.save(1, {"odd": array}, {})
    assert store.steps() == []


@pytest.mark.process
def test_a_killed_writer_leaves_only_complete_checkpoints(tmp_path: Path) -> None:
    script = f"""
import pathlib, numpy as np
from farshore.runs.checkpoints import CheckpointStore
store = CheckpointStore(pathlib.Path({str(tmp_path)!r}))
step = 0
while True:
    step += 1
    store.save(step, {{"w": np.full(300_000, step, np.float32)}}, {{"step": step}})
    print(step, flush=True)
"""
    with subprocess.Popen([sys.executable, "-P", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(5):
            saved = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        saved = max([saved, *map(int, process.stdout.read().split())])
    store = CheckpointStore(tmp_path)
    assert len(store.steps()) >= 2
    assert store.steps()[-1] >= saved, "every step for which save() returned exists"
    for step in store.steps():
        loaded, meta = store.load(step)
        assert meta == {"step": step}
        assert (loaded["w"] == step).all()


def test_json_files_are_replaced_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(StorageError):
        files.write_json(path, {"a": object()})

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="No space left"):
        files.write_json(path, {"a": 2})
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.json"]


def test_replace_reports_the_first_error_when_cleanup_fails_too(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()

    def write(temporary: Path) -> None:
        folder.rmdir()
        folder.write_text("not a directory")
        temporary.write_text("lost")

    with pytest.raises(StorageError, match="Not a directory – check the disk"):
        files.replace(folder / "step", write)
