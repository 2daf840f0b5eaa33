"""Assets, and the sources from which a server reads their content."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ...core.errors import DataError
from ...runs.files import storage_error

#: Content, or a part of it: uint8, shape [n].
Bytes: TypeAlias = NDArray[np.uint8]

_DIGEST = re.compile(r"[0-9a-f]{64}")
#: No control characters and no comma, which separates names in messages.
_NAME = re.compile(r"[^\x00-\x1f\x7f,]{1,100}")


@dataclass(frozen=True, slots=True)
class Asset:
    """Identity of an asset.

    Attributes
    ----------
    digest : str
        SHA-256 of the content, 64 lowercase hexadecimal digits.
    size : int
        Bytes.
    name : str
        For people: 1 to 100 characters, no comma. Nodes never use it as a path.

    Raises
    ------
    ValueError
        A value is invalid.
    """

    digest: str
    size: int
    name: str

    def __post_init__(self) -> None:
        if not _DIGEST.fullmatch(self.digest):
            raise ValueError(f"invalid digest '{self.digest[:70]}'")
        if self.size < 0:
            raise ValueError(f"invalid size {self.size}")
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"invalid name '{self.name[:100]}'")

    @classmethod
    def unknown(cls, size: int, name: str) -> Asset:
        """Return an asset whose content does not exist yet, for traffic estimates."""
        return cls("0" * 64, size, name)


class Source(Protocol):
    """An asset that this program can send."""

    @property
    def asset(self) -> Asset: ...

    def read(self, offset: int, count: int) -> Bytes:
        """Return the bytes ``offset … offset + count - 1``.

        Raises
        ------
        DataError, StorageError
            The content is no longer what the asset describes, or cannot be read.
        """


class MemorySource:
    """An asset in memory.

    Parameters
    ----------
    content : array
        C-contiguous; its bytes are the content.
    name : str
    """

    def __init__(self, content: NDArray[Any], name: str) -> None:
        self._bytes = content.reshape(-1).view(np.uint8)
        self.asset = Asset(hashlib.sha256(self._bytes.data).hexdigest(), self._bytes.nbytes, name)

    def read(self, offset: int, count: int) -> Bytes:
        """See :meth:`Source.read`."""
        return self._bytes[offset : offset + count]


class FileSource:
    """An asset in a file, which is read in parts.

    Parameters
    ----------
    path : Path
    name : str
        By default the file's name.

    Raises
    ------
    StorageError
        The file cannot be read.
    """

    def __init__(self, path: Path, name: str = "") -> None:
        self._path = path
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                size = file.tell()
        except OSError as error:
            raise storage_error(f"cannot read {path}", error) from error
        self.asset = Asset(digest, size, name or path.name)

    def read(self, offset: int, count: int) -> Bytes:
        """See :meth:`Source.read`."""
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                content = np.fromfile(file, np.uint8, count)
        except OSError as error:
            raise storage_error(f"cannot read {self._path}", error) from error
        if len(content) != count:
            raise DataError(f"{self._path} became shorter while it was sent", hint="do not change files of a run")
        return content


class BlankSource:
    """Zeros of an asset's size, for messages whose sizes alone matter."""

    def __init__(self, asset: Asset) -> None:
        self.asset = asset

    def read(self, offset: int, count: int) -> Bytes:
        """Return zeros."""
        return np.zeros(count, np.uint8)


def spans(size: int, step: int, start: int = 0) -> Iterator[tuple[int, int]]:
    """Cut ``start … size - 1`` into parts ``(offset, count)`` of at most ``step`` bytes."""
    return ((offset, min(step, size - offset)) for offset in range(start, size, step))
