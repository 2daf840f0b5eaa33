"""Little shared memory, as containers have it: models are shared through files, with the same result."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import StorageError
from farshore.simulations.federated import shared_block
from farshore.simulations.federated.shared_arrays import SharedArrays
from farshore.simulations.federated.shared_block import FileBlock, allocate


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared memory in which nothing can be reserved."""
    reserve = shared_block._reserve

    def limited(path: Path, size: int) -> None:
        if path.parent == shared_block.SHARED_MEMORY:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        reserve(path, size)

    monkeypatch.setattr(shared_block, "_reserve", limited)


def test_arrays_are_shared_through_a_file(tiny: None, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    before = set(shared_block.SHARED_MEMORY.iterdir()) if shared_block.SHARED_MEMORY.is_dir() else set()
    arrays = {"floats": np.arange(1000, dtype=np.float32), "integers": np.arange(3)}
    shared = SharedArrays.like(arrays, tmp_path)
    assert "shared memory is too small" in caplog.text
    shared.fill(arrays)
    opened = SharedArrays.open(shared.description())
    assert all(np.array_equal(opened.arrays[name], arrays[name]) for name in arrays)
    opened.arrays["integers"][0] = 7
    assert shared.arrays["integers"][0] == 7
    opened.close()
    shared.close()
    assert list(tmp_path.iterdir()) == []
    after = set(shared_block.SHARED_MEMORY.iterdir()) if shared_block.SHARED_MEMORY.is_dir() else set()
    assert after <= before, "the refused block was removed"


def test_a_full_disk_as_well_is_one_clear_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(path: Path, size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shared_block, "_reserve", full)
    with pytest.raises(StorageError, match="cannot share 5") as caught:
        allocate(5_000_000, tmp_path)
    assert "--shm-size" in str(caught.value.hint)


def test_blocks_of_both_kinds_have_the_same_interface(tiny: None, tmp_path: Path) -> None:
    block: Any = allocate(100, tmp_path)
    assert isinstance(block, FileBlock)
    assert (block.size, len(block.buf)) == (100, 100)
    block.buf[:2] = b"ab"
    block.close()
    block.unlink()
    block.unlink()
