"""A machine's assets: complete and intact whoever writes them, within the limit, and never taken from a reader."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import DataError, StorageError
from farshore.engines.assets.asset import Asset, Bytes, FileSource, MemorySource
from farshore.engines.assets.cache import AssetCache


def content(number: int, size: int = 1000) -> Bytes:
    return np.random.default_rng(number).integers(0, 256, size, np.uint8)


def asset(number: int, size: int = 1000) -> Asset:
    return MemorySource(content(number, size), f"asset {number}").asset


def held(cache: AssetCache, numbers: range) -> list[int]:
    """Assets that are there, without a change to the order of their use."""
    return [number for number in numbers if (cache.folder / asset(number).digest).exists()]


def read(cache: AssetCache, wanted: Asset) -> bytes | None:
    file = cache.open(wanted)
    if file is None:
        return None
    with file:
        return file.read()


@pytest.fixture
def cache(tmp_path: Path) -> AssetCache:
    return AssetCache(tmp_path / "assets", limit=3500)


def use(cache: AssetCache, *numbers: int) -> None:
    """Store assets, or use them again; each later than the one before, whatever the resolution of the clock."""
    for number in numbers:
        cache.add(asset(number), content(number))
        path = cache.folder / asset(number).digest
        newest = max(each.stat().st_mtime_ns for each in cache.folder.iterdir())
        os.utime(path, ns=(newest + 1, newest + 1))


@pytest.mark.parametrize("digest", ["", "0" * 63, "A" * 64, "../../../etc/passwd", "0" * 64 + "\n", "/" + "0" * 63])
def test_a_digest_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(ValueError, match="invalid digest"):
        Asset(digest, 1, "x")


@pytest.mark.parametrize(("size", "name"), [(-1, "x"), (1, ""), (1, "a,b"), (1, "a\nb"), (1, "x" * 101)])
def test_an_invalid_size_or_name_is_refused(size: int, name: str) -> None:
    with pytest.raises(ValueError, match=r"invalid (size|name)"):
        Asset("0" * 64, size, name)


def test_an_asset_is_identified_by_its_content(tmp_path: Path) -> None:
    values = np.arange(7, dtype="<f4")
    (tmp_path / "file.bin").write_bytes(values.tobytes())
    from_file, from_memory = FileSource(tmp_path / "file.bin"), MemorySource(values, "file.bin")
    expected = Asset(hashlib.sha256(values.tobytes()).hexdigest(), 28, "file.bin")
    assert from_file.asset == from_memory.asset == expected
    assert from_file.read(4, 8).tobytes() == from_memory.read(4, 8).tobytes() == values[1:3].tobytes()


def test_a_file_that_became_shorter_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(100))
    source = FileSource(tmp_path / "file")
    (tmp_path / "file").write_bytes(bytes(50))
    with pytest.raises(DataError, match="became shorter"):
        source.read(40, 20)
    with pytest.raises(StorageError, match=r"cannot read .*missing"):
        FileSource(tmp_path / "missing")


def test_what_was_stored_is_found_by_later_runs(cache: AssetCache) -> None:
    assert cache.open(asset(1)) is None
    cache.add(asset(1), content(1))
    assert read(AssetCache(cache.folder), asset(1)) == content(1).tobytes()
    cache.add(asset(1), content(1))
    assert held(cache, range(3)) == [1]


def test_the_least_recently_used_assets_are_deleted_to_stay_within_the_limit(cache: AssetCache) -> None:
    use(cache, 1, 2, 3)
    assert held(cache, range(6)) == [1, 2, 3]
    use(cache, 1, 4)  # 2 was not used for the longest time
    assert held(cache, range(6)) == [1, 3, 4]
    use(cache, 5)
    assert held(cache, range(6)) == [1, 4, 5]


def test_opening_an_asset_counts_as_use(cache: AssetCache) -> None:
    use(cache, 1, 2, 3)
    for number in (1, 2, 3):
        path = cache.folder / asset(number).digest
        os.utime(path, (number, number))
    assert read(cache, asset(1)) is not None
    cache.add(asset(4), content(4))
    assert held(cache, range(6)) == [1, 3, 4]


def test_an_asset_in_use_is_not_deleted_even_when_only_mapped(cache: AssetCache) -> None:
    use(cache, 1, 2, 3)
    file = cache.open(asset(1))
    assert file is not None
    mapped = np.memmap(file, np.uint8, "c")
    file.close()
    opened = cache.open(asset(2))
    assert opened is not None
    os.utime(cache.folder / asset(1).digest, (1, 1))
    os.utime(cache.folder / asset(2).digest, (2, 2))
    cache.add(asset(4), content(4))
    assert held(cache, range(6)) == [1, 2, 4]
    assert mapped.tobytes() == content(1).tobytes()
    assert Path(opened.name).read_bytes() == opened.read() == content(2).tobytes()
    with pytest.raises(StorageError, match=r"'asset 9' \(3,000 bytes\) does not fit .*limit is 3,500 bytes"):
        cache.add(asset(9, 3000), content(9, 3000))
    assert held(cache, range(6)) == [1, 2]
    opened.close()
    del mapped
    cache.add(asset(9, 3000), content(9, 3000))
    assert held(cache, range(6)) == []


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: bytes([b[0] ^ 1]) + b[1:]])
def test_a_damaged_file_is_deleted_and_can_be_stored_again(cache: AssetCache, damage: Any) -> None:
    cache.add(asset(1), content(1))
    path = cache.folder / asset(1).digest
    path.write_bytes(damage(path.read_bytes()))
    assert cache.open(asset(1)) is None
    assert not path.exists()
    cache.add(asset(1), content(1))
    assert read(cache, asset(1)) == content(1).tobytes()


def test_content_with_another_digest_is_refused_and_leaves_nothing(cache: AssetCache) -> None:
    with pytest.raises(DataError, match="content of 'asset 1' differs from its digest"):
        cache.add(asset(1), content(2))
    with pytest.raises(DataError, match="exceeds 1000 bytes"), cache.receive(asset(1)) as partial:
        partial.write(content(1, 1001))
    assert cache.open(asset(1)) is None


def test_an_interrupted_transfer_is_continued(cache: AssetCache) -> None:
    with cache.receive(asset(1)) as partial:
        partial.write(content(1)[:300])
    with cache.receive(asset(1)) as partial:
        assert (partial.size, partial.continued) == (300, True)
        partial.write(content(1)[300:])
        partial.commit()
    assert read(cache, asset(1)) == content(1).tobytes()


def test_unfinished_files_count_toward_the_limit_and_are_deleted_first(cache: AssetCache) -> None:
    with cache.receive(asset(1)) as partial:
        partial.write(content(1)[:900])
    os.utime(partial.path, (1, 1))
    use(cache, 2, 3, 4)
    assert held(cache, range(6)) == [2, 3, 4]
    assert not partial.path.exists()


def test_two_writers_of_one_asset_do_not_disturb_each_other(cache: AssetCache) -> None:
    first, second = cache.receive(asset(1)), cache.receive(asset(1))
    assert first.path != second.path
    for partial in (first, second):
        partial.write(content(1)[:500])
    for partial in (second, first):
        partial.write(content(1)[500:])
        partial.commit()
    assert read(cache, asset(1)) == content(1).tobytes()
    assert sorted(p.name for p in cache.folder.iterdir()) == sorted([asset(1).digest, "lock"])


class _FullDisk:
    """A file on a full disk."""

    def __init__(self, file: Any) -> None:
        self._file = file

    def write(self, data: Any) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def test_a_full_disk_is_reported_in_one_line_and_nothing_is_lost(cache: AssetCache) -> None:
    use(cache, 1)
    with cache.receive(asset(2)) as partial:
        partial._file = _FullDisk(partial._file)  # type: ignore[assignment]
        with pytest.raises(StorageError) as caught:
            partial.write(content(2))
    assert "cannot store the asset 'asset 2'" in str(caught.value)
    assert "No space left on device – free some space" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not partial.path.exists()
    assert read(cache, asset(1)) == content(1).tobytes()


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot read"):
        AssetCache(tmp_path / "file" / "assets").add(asset(1), content(1))


@pytest.mark.process
@pytest.mark.timeout(120)
def test_processes_that_write_the_same_assets_leave_a_cache_within_its_limit(tmp_path: Path) -> None:
    script = Path(__file__).with_name("asset_writer.py")
    commands = [[sys.executable, str(script), str(tmp_path), "4500", "200", str(own)] for own in range(3)]
    processes = [subprocess.Popen(command) for command in commands]
    assert [process.wait(90) for process in processes] == [0, 0, 0]
    cache = AssetCache(tmp_path, limit=4500)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= cache.limit
    assert len(held(cache, range(7))) >= 1
    for number in held(cache, range(7)):
        assert read(cache, asset(number)) == content(number).tobytes()
    assert not list(tmp_path.glob("*.part"))
