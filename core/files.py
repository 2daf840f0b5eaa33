"""Writing small files so that they are whole or not there, and private from their first byte."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import StorageError


def private_folder(path: Path) -> Path:
    """Make ``path`` (and its parents) and let its owner alone use it.

    Raises
    ------
    StorageError
        It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot use the folder {path}: {error.strerror}") from error
    return path


def write_file(path: Path, content: bytes, *, mode: int = 0o600, new: bool = False) -> None:
    """Replace a file in one step; it is never, not for a moment, readable by more than ``mode`` allows.

    Raises
    ------
    StorageError
        It cannot be written, or ``new`` and it exists.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if new and path.exists():
            raise StorageError(f"{path} exists already", hint="choose another folder or remove it by hand")
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error
