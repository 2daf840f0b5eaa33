"""Configuration of glibc's allocator: large freed blocks stay in the process instead of going back to the kernel.

By default, glibc returns large blocks to the kernel when they are freed, so that every message of 1 MiB causes 256 page
faults on each side. On virtual machines this takes longer than copying the message several times.
"""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
#: Maximum free bytes kept at the top of a heap, and size from which blocks are always returned to the kernel.
KEPT_BYTES = 64 << 20
MAPPED_BYTES = 32 << 20
_MAX_OPTION = (1 << 31) - 1  # an int of C


def keep_freed_memory(block_bytes: int = 0) -> bool:
    """Make glibc keep up to 64 MiB of freed blocks per heap, for the lifetime of the process.

    Does nothing with other C libraries, and if the environment configures the allocator
    (``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_MMAP_THRESHOLD_``, ``GLIBC_TUNABLES``).

    Parameters
    ----------
    block_bytes : int
        Size of blocks that the process allocates and frees again and again, e.g. a model's gradient. Beyond 32 MiB
        glibc always maps blocks; for such sizes, mapping is switched off and two of these blocks are kept.

    Returns
    -------
    bool
        Whether the options were set.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    try:
        library = ctypes.CDLL(None)
        set_option = library.mallopt
        library.gnu_get_libc_version  # noqa: B018 - mallopt of other libraries has other options
    except (OSError, AttributeError, TypeError):
        return False
    options = {_MMAP_THRESHOLD: MAPPED_BYTES, _TRIM_THRESHOLD: KEPT_BYTES}
    if block_bytes > MAPPED_BYTES:
        options |= {_MMAP_MAX: 0, _TRIM_THRESHOLD: min(KEPT_BYTES + 2 * block_bytes, _MAX_OPTION)}
    refused = [option for option, value in options.items() if not set_option(option, value)]
    return not refused
