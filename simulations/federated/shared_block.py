"""A block of memory that several processes map: in shared memory or, where too little of it is left, in a file."""

from __future__ import annotations

import logging
import mmap
import os
import tempfile
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from typing import TypeAlias

from ...core.errors import StorageError

_log = logging.getLogger(__name__)

#: Where Linux keeps shared memory; its size is limited, to 64 MB by default in containers.
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - no temporary file
FILE_PREFIX = ".farshore-shared-"


class FileBlock:
    """A mapped file with the interface of ``SharedMemory``.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self.name, self.size = str(path), path.stat().st_size
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), self.size)
        self.buf = memoryview(self._map)

    def close(self) -> None:
        """Unmap the file."""
        self.buf.release()
        self._map.close()

    def unlink(self) -> None:
        """Remove the file."""
        Path(self.name).unlink(missing_ok=True)


Block: TypeAlias = SharedMemory | FileBlock


def allocate(size: int, folder: Path | None = None) -> Block:
    """Allocate a block; all of its pages are reserved, so that writing to it cannot fail later.

    Parameters
    ----------
    size : int
        Bytes.
    folder : Path, optional
        Where a file is made if shared memory is too small; default: the system's folder for temporary files.

    Raises
    ------
    StorageError
        The disk is full too.
    """
    try:
        memory = SharedMemory(create=True, size=size)
    except OSError as error:
        return _allocate_file(size, folder, error)
    try:
        _reserve(SHARED_MEMORY / memory.name.lstrip("/"), size)
    except OSError as error:
        memory.close()
        memory.unlink()
        return _allocate_file(size, folder, error)
    return memory


def open_block(name: str) -> Block:
    """Open a block that another process allocated."""
    return FileBlock(Path(name)) if os.sep in name.lstrip("/") else SharedMemory(name=name)


def _allocate_file(size: int, folder: Path | None, cause: OSError) -> FileBlock:
    _log.warning("shared memory is too small for %.1f MB (%s); a file is used instead", size / 1e6, cause.strerror)
    try:
        handle, name = tempfile.mkstemp(prefix=FILE_PREFIX, dir=folder)
        os.close(handle)
        path = Path(name)
        os.truncate(path, size)
        _reserve(path, size)
    except OSError as error:
        message = f"cannot share {size / 1e6:.1f} MB between processes: {error.strerror}"
        hint = f"free space in {folder or tempfile.gettempdir()}, or enlarge {SHARED_MEMORY} (docker run --shm-size=1g)"
        raise StorageError(message, hint=hint) from error
    return FileBlock(path)


def _reserve(path: Path, size: int) -> None:
    """Reserve the pages of a file now: otherwise a write to a mapped page kills the process (SIGBUS)."""
    if not hasattr(os, "posix_fallocate") or not path.exists():
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)
