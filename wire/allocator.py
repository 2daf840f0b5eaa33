"""Keeps the memory of freed messages in the process.

The C library gives large blocks back to the kernel when they are freed, so each message of a mebibyte costs 256 page
faults, on either side, before its first byte moves. On virtual machines that is slower than copying it several times.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: Free bytes at the top of a heap that stay with the process, and the smallest block that always goes back.
KEPT_BYTES = 64 << 20
MAPPED_BYTES = 32 << 20


def keep_freed_memory() -> bool:
    """Tell glibc to keep up to 64 MiB of freed blocks per heap; returns whether it does.

    For the whole process and for good. Elsewhere than on glibc, or where the environment has an opinion
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``), nothing is changed.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    try:
        library = ctypes.CDLL(None)
        set_option = library.mallopt
        library.gnu_get_libc_version  # noqa: B018 - other libraries have a mallopt that means something else
    except (OSError, AttributeError, TypeError):
        return False
    return bool(set_option(_MMAP_THRESHOLD, MAPPED_BYTES)) and bool(set_option(_TRIM_THRESHOLD, KEPT_BYTES))
