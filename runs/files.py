"""Atomic writing of files, and JSON files: a kill or a full disk leaves either the old file or the new one."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..core.errors import NotFoundError, StorageError
from ..core.files import sync as sync
from ..core.json_text import to_json

_HINTS = {
    errno.ENOSPC: "free some space on that disk, then resume the run",
    errno.EDQUOT: "your disk quota is used up: free some space, then resume the run",
    errno.EROFS: "that file system is read-only: choose another directory",
    errno.EACCES: "give this user write permission, or choose another directory",
    errno.EPERM: "give this user write permission, or choose another directory",
}


def storage_error(what: str, error: OSError) -> StorageError:
    """Build a :class:`StorageError` for a failed file operation, with a hint for its ``errno``.

    Parameters
    ----------
    what : str
        The operation that failed, e.g. ``cannot write /runs/x``.
    error : OSError
    """
    hint = _HINTS.get(error.errno or 0, "check the disk and the directory's permissions")
    return StorageError(f"{what}: {error.strerror or error}", hint=hint)


def replace(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, then rename it to ``path``.

    Parameters
    ----------
    path : Path
    write : callable
        Called with the temporary path; writes the whole file.

    Raises
    ------
    StorageError
        Writing fails; the previous file at ``path`` is kept.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        sync(temporary)
        temporary.replace(path)
        sync(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):  # may fail for the same reason; report the first error
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise storage_error(f"cannot write {path}", error) from error
        raise


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, non-finite numbers as ``null``.

    Raises
    ------
    StorageError
        Writing fails, or ``value`` is not JSON-serializable.
    """
    try:
        text = to_json(value, indent=2, ensure_ascii=False) + "\n"
    except (TypeError, ValueError) as error:
        raise StorageError(f"cannot write {path}: {error}", hint="use only JSON-serializable values") from error
    replace(path, lambda temporary: _write_text(temporary, text))


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    NotFoundError
        The file does not exist.
    StorageError
        The file cannot be read, or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFoundError(f"file {path} does not exist") from error
    except OSError as error:
        raise storage_error(f"cannot read {path}", error) from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{path} is damaged: {error}", hint="restore it, or start a new run") from error
    if not isinstance(value, dict):
        raise StorageError(f"{path} is damaged: not a JSON object", hint="restore it, or start a new run")
    return value


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
