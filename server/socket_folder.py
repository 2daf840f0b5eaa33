"""A private directory for the Unix sockets of run processes, with a short enough path."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from pathlib import Path

from ..core.errors import ConfigError

#: A socket's path has at most 103 bytes on all systems; the directory's name and that of a socket take 51.
_LONGEST_BASE = 52


class SocketFolder:
    """A directory of mode 0700 in the system's temporary directory, or in a shorter one if that is too deep.

    Its name is derived from the server's id, so that a restarted server removes what a killed one has left.

    Parameters
    ----------
    server_id : str

    Raises
    ------
    ConfigError
        There is no directory with a path short enough for sockets.
    """

    def __init__(self, server_id: str) -> None:
        base = _base()
        path = base / f"farshore-{server_id[:12]}"
        if _is_ours(path):
            shutil.rmtree(path, ignore_errors=True)
        try:
            path.mkdir(mode=0o700)
        except FileExistsError:  # owned by another user; never use it
            path = Path(tempfile.mkdtemp(prefix="farshore-", dir=base))
        self.path = path

    def socket(self, run_id: str, epoch: int) -> Path:
        """Return the socket path for a restart epoch of a run; an existing file is removed."""
        path = self.path / f"{run_id[:24]}-{epoch}"
        path.unlink(missing_ok=True)
        return path

    def remove(self) -> None:
        """Remove the directory with its contents."""
        shutil.rmtree(self.path, ignore_errors=True)


def _base() -> Path:
    """Return the first usable directory whose sockets have paths that the system accepts."""
    for name in (tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR", ""), "/tmp"):  # noqa: S108 - private below it
        if 0 < len(os.fsencode(name)) <= _LONGEST_BASE and os.access(name, os.W_OK | os.X_OK):
            return Path(name)
    raise ConfigError(
        f"the path of the directory for temporary files is too long for sockets: {tempfile.gettempdir()}",
        hint=f"set TMPDIR to a directory with a path of at most {_LONGEST_BASE} characters",
    )


def _is_ours(path: Path) -> bool:
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
