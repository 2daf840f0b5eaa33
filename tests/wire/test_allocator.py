"""The allocator reuses the memory of freed messages without page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource
from farshore.wire.allocator import keep_freed_memory
{call}
def use():
    for _ in range(30):
        blocks = [bytes(bytearray(1 << 20)) for _ in range(8)]
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


_LARGE = """
import resource
import numpy as np
from farshore.wire.allocator import keep_freed_memory
{call}
def use():
    for _ in range(10):
        np.empty(80 << 20, np.uint8).fill(1)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def _faults(call: str, script: str = _FAULTS) -> int:
    done = subprocess.run(
        [sys.executable, "-P", "-c", script.format(call=call)], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="configures glibc only")
def test_freed_memory_is_reused_without_page_faults() -> None:
    assert _faults("assert keep_freed_memory()") < 200 < _faults("") / 4


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="configures glibc only")
def test_blocks_beyond_the_limit_of_mapping_are_reused_too_where_their_size_is_given() -> None:
    assert _faults("assert keep_freed_memory(80 << 20)", _LARGE) < 1000 < _faults("keep_freed_memory()", _LARGE) / 4


def test_settings_of_the_environment_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from farshore.wire.allocator import keep_freed_memory

    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_freed_memory()
