"""The lock of a home directory: one process at a time, which others can name."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from .errors import FarshoreError, StorageError
from .files import private_folder


class HomeLock:
    """Holds the lock of a home directory until :meth:`release`, or until the process ends.

    Parameters
    ----------
    home : Path
        Made with mode 0700 if missing.
    refusal : FarshoreError
        Raised if another process holds the lock; its message is completed by that process's id.

    Raises
    ------
    StorageError
        The file ``home/lock`` cannot be opened.
    """

    def __init__(self, home: Path, refusal: FarshoreError) -> None:
        path = private_folder(home) / "lock"
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise StorageError(f"cannot open {path}: {error.strerror}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(self._descriptor, 20, 0).decode(errors="replace").strip()
            self.release()
            by = f"process {holder}" if holder.isdecimal() else "another process"
            raise type(refusal)(f"{refusal.message}: {by} holds {home}", hint=refusal.hint) from error
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, f"{os.getpid()}\n".encode(), 0)

    def release(self) -> None:
        """Release the lock; idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
