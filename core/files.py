"""Atomic writes of small files with restricted permissions."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import StorageError


def private_folder(path: Path) -> Path:
    """Create the directory ``path`` and its parents; ``path`` gets mode 0700.

    Raises
    ------
    StorageError
        The directory cannot be created.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o700)
    except OSError as error:
        raise StorageError(f"cannot create the directory {path}: {error.strerror}") from error
    return path


def write_file(path: Path, content: bytes, *, mode: int = 0o600, new: bool = False) -> None:
    """Replace a file atomically and durably. The file never has wider permissions than ``mode``.

    Parameters
    ----------
    path : Path
        Missing parent directories are created.
    content : bytes
    mode : int
        Permission bits.
    new : bool
        Refuse to replace an existing file.

    Raises
    ------
    StorageError
        The file cannot be written, or ``new`` is set and it exists.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if new and path.exists():
            raise StorageError(f"{path} already exists", hint="choose another directory or remove the file")
        temporary = path.with_name(f"{path.name}.{os.getpid()}.new")
        temporary.unlink(missing_ok=True)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync(path.parent)
    except OSError as error:
        raise StorageError(f"cannot write {path}: {error.strerror}") from error


def sync(path: Path) -> None:
    """Flush a file, or a directory's entries, to the disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
