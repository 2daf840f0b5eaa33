"""Where run processes listen: a private folder with a path short enough for unix sockets."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path


class SocketFolder:
    """A folder of mode 0700 below the system's temporary one.

    Its name follows from the server's, so that a server that was killed finds and removes what it left.

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
        except FileExistsError:  # somebody else took the name; never use a folder of theirs
            path = Path(tempfile.mkdtemp(prefix="farshore-"))
        self.path = path

    def socket(self, run_id: str, epoch: int) -> Path:
        """The socket of a run's epoch; nothing is at that path."""
        path = self.path / f"{run_id[:40]}-{epoch}"
        path.unlink(missing_ok=True)
        return path

    def remove(self) -> None:
        """Remove the folder and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
