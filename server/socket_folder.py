"""A private directory for the Unix sockets of run processes, with a short enough path."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path


class SocketFolder:
    """A directory of mode 0700 in the system's temporary directory.

    Its name is derived from the server's id, so that a restarted server removes what a killed one has left.

    Parameters
    ----------
    server_id : str
    """

    def __init__(self, server_id: str) -> None:
        path = Path(tempfile.gettempdir()) / f"farshore-{server_id[:12]}"
        if _is_ours(path):
            shutil.rmtree(path, ignore_errors=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:  # owned by another user; never use it
            path = Path(tempfile.mkdtemp(prefix="farshore-"))
        self.path = path

    def socket(self, run_id: str, epoch: int) -> Path:
        """Return the socket path for a restart epoch of a run; an existing file is removed."""
        path = self.path / f"{run_id[:40]}-{epoch}"
        path.unlink(missing_ok=True)
        return path

    def remove(self) -> None:
        """Remove the directory with its contents."""
        shutil.rmtree(self.path, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
