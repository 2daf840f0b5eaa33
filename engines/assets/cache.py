"""A machine's folder of assets: files named by digest, kept between runs within a limit, verified on use.

Several processes may use one folder at the same time. A file appears under its name only when it is complete (atomic
rename). Locks of the operating system (``flock``) serialize changes of the folder, let one process at a time continue
an interrupted transfer, and mark files in use, which are not evicted; they end with the process that holds them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedRandom, BufferedReader
from pathlib import Path

from ...core.errors import DataError, StorageError
from ...runs.files import storage_error
from .asset import Asset, Bytes

#: Default limit.
LIMIT_BYTES = 2 << 30

_PARTIAL = ".part"
_LOCK = "lock"


class AssetCache:
    """Assets on the disk of a machine.

    Parameters
    ----------
    folder : Path
        Created when the first asset is stored.
    limit : int
        Bytes; before it is exceeded, the files that were not used for the longest time are deleted.
    """

    def __init__(self, folder: Path, limit: int = LIMIT_BYTES) -> None:
        self.folder, self.limit = folder, limit

    def open(self, asset: Asset) -> BufferedReader | None:
        """Open an asset for reading; None if it is not there. A damaged file is deleted.

        While the file, or a memory map of it, is open, the asset is not evicted, and its path (the file's ``name``) is
        valid.

        Raises
        ------
        StorageError
            The file exists and cannot be read.
        """
        path = self.folder / asset.digest
        try:
            while True:
                file = path.open("rb")
                fcntl.flock(file, fcntl.LOCK_SH)
                if not _is_at(file, path):  # evicted before it was locked
                    file.close()
                    continue
                if _is_intact(file, asset):
                    os.utime(path)  # the order of eviction
                    file.seek(0)
                    return file
                path.unlink()
                file.close()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise storage_error(f"cannot read {path}", error) from error

    def add(self, asset: Asset, content: Bytes) -> None:
        """Store the whole content of an asset; nothing happens if it is there.

        Raises
        ------
        DataError
            The content is not that of the asset.
        StorageError
            The disk is full, or the asset does not fit within the limit.
        """
        if (file := self.open(asset)) is not None:
            file.close()
            return
        with self.receive(asset) as partial:
            partial.restart()
            partial.write(content)
            partial.commit()

    def receive(self, asset: Asset) -> PartialAsset:
        """Begin or continue storing an asset.

        Raises
        ------
        StorageError
            The folder cannot be written, or the asset does not fit within the limit.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise storage_error(f"cannot create {self.folder}", error) from error
        with self._locked():
            partial = PartialAsset(self, asset, *_lock_partial(self.folder / f"{asset.digest}{_PARTIAL}"))
            missing = self._evict(asset.size - partial.size)
            if missing > 0:
                partial.close()
                raise StorageError(
                    f"the asset '{asset.name}' ({asset.size:,} bytes) does not fit into {self.folder}, "
                    f"whose limit is {self.limit:,} bytes",
                    hint="use smaller assets, or wait until other runs of this machine have ended",
                )
        return partial

    def _commit(self, partial: PartialAsset) -> None:
        """Make a complete file available under its digest."""
        with self._locked():
            partial.path.replace(self.folder / partial.asset.digest)
            self._evict(0)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Exclude other processes that change the folder; held for the time of some file operations only."""
        try:
            with (self.folder / _LOCK).open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise storage_error(f"cannot write to {self.folder}", error) from error

    def _evict(self, room: int) -> int:
        """Delete the files that were not used for the longest time until ``room`` further bytes fit.

        Returns the number of bytes by which the limit is exceeded nevertheless, because all other files are in use.
        """
        files = []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):
                if path.name != _LOCK:
                    files.append((path.stat().st_mtime_ns, path.stat().st_size, path))
        excess = sum(size for _, size, _ in files) + room - self.limit
        for _, size, path in sorted(files):
            if excess > 0 and _delete_unused(path):
                excess -= size
        return max(0, excess)


class PartialAsset:
    """An asset that is being stored; a context manager that keeps what is there for a later continuation.

    Attributes
    ----------
    asset : Asset
    path : Path
        The unfinished file; its beginning may come from an earlier, interrupted transfer.
    size : int
        Bytes that are there.
    """

    def __init__(self, cache: AssetCache, asset: Asset, path: Path, file: BufferedRandom) -> None:
        self.asset, self.path = asset, path
        self._cache, self._file = cache, file
        self.size = file.seek(0, os.SEEK_END)
        self.continued = self.size > 0
        if self.size > asset.size:
            self.restart()

    def __enter__(self) -> PartialAsset:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def restart(self) -> None:
        """Discard what is there."""
        self._file.seek(0)
        self._file.truncate()
        self.size, self.continued = 0, False

    def write(self, content: Bytes) -> None:
        """Append a part of the content.

        Raises
        ------
        DataError
            It exceeds the asset's size.
        StorageError
            The disk is full; the unfinished file is deleted, so that it does not stay so.
        """
        if self.size + content.nbytes > self.asset.size:
            raise DataError(f"the content of '{self.asset.name}' exceeds {self.asset.size} bytes")
        try:
            self._file.write(content.data)
            self._file.flush()
        except OSError as error:
            self._discard()
            raise storage_error(f"cannot store the asset '{self.asset.name}' in {self.path.parent}", error) from error
        self.size += content.nbytes

    def commit(self) -> None:
        """Verify the content and make it available under its digest; the file is closed.

        Raises
        ------
        DataError
            Size or digest differ; what was received is discarded.
        StorageError
            The file cannot be written to the disk.
        """
        try:
            self._file.seek(0)
            if not _is_intact(self._file, self.asset):
                self._discard()
                raise DataError(f"the content of '{self.asset.name}' differs from its digest {self.asset.digest[:12]}…")
            os.fsync(self._file.fileno())
            self._cache._commit(self)
        except OSError as error:
            self._discard()
            raise storage_error(f"cannot store the asset '{self.asset.name}' in {self.path.parent}", error) from error
        finally:
            self.close()

    def close(self) -> None:
        """Close the unfinished file."""
        if not self._file.closed:
            with suppress(OSError):  # of a full disk: reported by the write
                self._file.close()

    def _discard(self) -> None:
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
        self.close()


def _lock_partial(path: Path) -> tuple[Path, BufferedRandom]:
    """Open an unfinished file that no other process writes: ``path``, or a file of this process alone beside it.

    The folder must be locked, so that the file is not evicted before it is marked as used.
    """
    while True:
        file = _open_to_write(path)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            own = path.with_name(f"{path.stem}.{uuid.uuid4().hex}{_PARTIAL}")
            file = _open_to_write(own)
            fcntl.flock(file, fcntl.LOCK_EX)
            return own, file
        if _is_at(file, path):
            return path, file
        file.close()  # another process discarded it in the meantime


def _is_at(file: BufferedReader | BufferedRandom, path: Path) -> bool:
    """Whether an open file is still the one with this path."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    return False


def _open_to_write(path: Path) -> BufferedRandom:
    return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b")


def _is_intact(file: BufferedReader | BufferedRandom, asset: Asset) -> bool:
    if os.fstat(file.fileno()).st_size != asset.size:
        return False
    return hashlib.file_digest(file, "sha256").hexdigest() == asset.digest


def _delete_unused(path: Path) -> bool:
    """Delete a file unless a process reads or writes it; whether it was deleted."""
    with suppress(OSError), path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink()
        return True
    return False
