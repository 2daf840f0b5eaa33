"""Files that are either whole or not there, whatever kills the process or fills the disk."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import NotFoundError, StorageError

_HINTS = {
    errno.ENOSPC: "free some space on that disk, then resume the run",
    errno.EDQUOT: "your disk quota is used up: free some space, then resume the run",
    errno.EROFS: "that file system is read-only: choose another directory",
    errno.EACCES: "give this user the right to write there, or choose another directory",
    errno.EPERM: "give this user the right to write there, or choose another directory",
}


def storage_error(what: str, error: OSError) -> StorageError:
    """The error that says ``what`` failed, why, and what to do about it."""
    hint = _HINTS.get(error.errno or 0, "check that disk and the directory's permissions")
    return StorageError(f"{what}: {error.strerror or error}", hint=hint)


def sync(path: Path) -> None:
    """Make a file's bytes, or a directory's entries, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Put a new file in the place of ``path`` in one step.

    Parameters
    ----------
    path : Path
    write : callable
        Writes the whole file under the temporary name that it is given.

    Raises
    ------
    StorageError
        It cannot be written; what was at ``path`` is still there.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # may fail for the same reason: the first cause is the one to tell
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(f"cannot write {path}", error) from error
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file in one step.

    Raises
    ------
    StorageError
        It cannot be written, or ``value`` holds something that JSON does not know.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise StorageError(f"cannot write {path}: {error}", hint="only JSON-able values belong there") from error
    replace(path, lambda temporary: _write_text(temporary, text))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    NotFoundError
        There is no such file.
    StorageError
        It cannot be read, or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    except OSError as error:
        raise storage_error(f"cannot read {path}", error) from error
    except ValueError as error:
        raise StorageError(f"{path} is damaged: {error}", hint="restore it, or start the run anew") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path} is damaged: it holds no JSON object", hint="restore it, or start the run anew")
    return value


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
