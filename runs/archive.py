"""Export of a run directory to one tar file, and import of such a file with size limits and checksums.

The archive is a plain tar of regular files. The last one, ``farshore-run.json``, is the manifest: the run's id, and
size and SHA-256 of every other file. A truncated or modified archive is rejected as a whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..core.errors import NotFoundError, StorageError
from ..core.version import Versions
from . import files
from .directory import RunDirectory

MANIFEST = "farshore-run.json"
FORMAT = 1
#: Maximum length of a name in bytes (the limit of a plain tar header), depth of a path, number of files.
NAME_BYTES, DEPTH, FILES = 100, 8, 100_000
#: Maximum bytes of all files together, and of a JSON file that is read into memory.
TOTAL_BYTES, JSON_BYTES = 64 << 30, 64 << 20
#: Prefix of the folders of unfinished imports, followed by the process id.
_UNPACKING = ".import-"
_BLOCK, _CHUNK = tarfile.BLOCKSIZE, 1 << 20
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HINT = "export the run and copy the archive again"


@dataclass(frozen=True, slots=True)
class RunTransfer:
    """Summary of an export or import.

    Attributes
    ----------
    id : str
        The run's id on this machine.
    path : Path
        The archive that was written, or the run directory that was created.
    files, bytes : int
        Number of the run's files and their total size.
    sha256 : str
        SHA-256 of the archive, hexadecimal.
    """

    id: str
    path: Path
    files: int
    bytes: int
    sha256: str


def export_run(run: RunDirectory, path: Path, *, checkpoints: bool = True) -> RunTransfer:
    """Write a run directory as a tar file.

    The run may be active: each file is written with the size it has when it is opened.

    Parameters
    ----------
    run : RunDirectory
    path : Path
        Archive to write; replaced atomically if it exists.
    checkpoints : bool
        Whether to include the checkpoints.

    Raises
    ------
    StorageError
        A file name is too long or unsafe, the directory contains a link, or writing fails.
    """
    exported: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as raw:
            archive = _HashedFile(raw, digest)
            for name, source in _members(run.path, path, checkpoints=checkpoints):
                try:
                    with source.open("rb") as file:
                        exported[name] = _append(archive, name, file, source.stat().st_size)
                except FileNotFoundError:  # a checkpoint that was pruned meanwhile
                    continue
            manifest = {
                "format": FORMAT,
                "id": run.info["id"],
                "farshore": Versions.local().farshore,
                "files": exported,
            }
            text = json.dumps(manifest).encode()
            archive.write(_header(MANIFEST, len(text)) + text + bytes(-len(text) % _BLOCK + 2 * _BLOCK))

    files.replace(path, write)
    return RunTransfer(
        str(run.info["id"]), path, len(exported), sum(entry["size"] for entry in exported.values()), digest.hexdigest()
    )


def import_run(
    path: Path, folder: Path, *, name: str | None = None, sha256: str = "", total_bytes: int = TOTAL_BYTES
) -> RunTransfer:
    """Unpack a run into ``folder``. If the archive is invalid, nothing is left there.

    Parameters
    ----------
    path : Path
        An archive from :func:`export_run`.
    folder : Path
        Folder of run directories; created if missing.
    name : str, optional
        Id of the imported run; by default its own id.
    sha256 : str
        Expected SHA-256 of the archive, hexadecimal; empty accepts any.
    total_bytes : int
        Limit on the unpacked size; a file that exceeds it is rejected before it is written.

    Raises
    ------
    NotFoundError
        The archive does not exist.
    StorageError
        The file is not a run archive, is damaged or too large, contains links or unsafe names, or the id is taken.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)
        unpacked = Path(tempfile.mkdtemp(prefix=f"{_UNPACKING}{os.getpid()}-", dir=folder))
    except OSError as error:
        raise files.storage_error(f"cannot unpack into {folder}", error) from error
    try:
        with _open(path) as raw:
            digest = hashlib.sha256()
            limit = min(total_bytes, shutil.disk_usage(folder).free)
            manifest, found = _unpack(_HashedFile(raw, digest), unpacked, limit)
        _check(path, manifest, found, digest.hexdigest(), sha256.lower())
        run_id = _id(path, name or str(manifest.get("id")))
        _rename(path, unpacked, run_id, renamed=run_id != manifest.get("id"))
        target = folder / run_id
        if target.exists():
            raise StorageError(f"{folder} already contains a run '{run_id}'", hint="choose another id: --as ID")
        unpacked.rename(target)
    except OSError as error:
        raise files.storage_error(f"cannot unpack {path} into {folder}", error) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return RunTransfer(run_id, target, len(found), sum(size for size, _ in found.values()), digest.hexdigest())


def remove_leftovers(folder: Path) -> None:
    """Delete what imports into ``folder`` left behind whose process was killed."""
    for path in folder.glob(f"{_UNPACKING}*"):
        pid = path.name.removeprefix(_UNPACKING).partition("-")[0]
        if not (pid.isdecimal() and _is_alive(int(pid))):
            shutil.rmtree(path, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True


# ---- writing ---------------------------------------------------------------------------------------------------------


def _members(folder: Path, archive: Path, *, checkpoints: bool) -> Iterator[tuple[str, Path]]:
    """Yield names and paths of all files in order; hidden files are unfinished and skipped."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or path == archive.absolute():
            continue
        if path.is_symlink():
            raise StorageError(f"cannot export {path}: it is a link", hint="replace the link by the file itself")
        if not checkpoints and relative.parts[0] == "checkpoints":
            continue
        if path.is_file():
            try:
                yield _name(relative.as_posix()), path
            except ValueError as error:
                raise StorageError(f"cannot export {path}: {error}", hint="move that file out of the run") from None


def _append(archive: _HashedFile, name: str, file: IO[bytes], size: int) -> dict[str, Any]:
    """Append a member to the archive; return its manifest entry."""
    digest, remaining = hashlib.sha256(), size
    archive.write(_header(name, size))
    while remaining:
        chunk = file.read(min(remaining, _CHUNK))
        if not chunk:
            raise StorageError(f"{name} was truncated while it was read", hint="export the run once it has ended")
        digest.update(chunk)
        archive.write(chunk)
        remaining -= len(chunk)
    archive.write(bytes(-size % _BLOCK))
    return {"size": size, "sha256": digest.hexdigest()}


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    return info.tobuf(tarfile.GNU_FORMAT)


# ---- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"file {path} does not exist") from error
    with file:
        yield file


class _HashedFile:
    """A file that adds all bytes it reads or writes to a digest."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file, self._digest = file, digest

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def read(self, size: int) -> bytes:
        """Read exactly ``size`` bytes."""
        data = self._file.read(size)
        self._digest.update(data)
        if len(data) != size:
            raise StorageError("the archive ends in the middle of a file", hint=_HINT)
        return data

    def read_padding(self) -> None:
        """Read to the end; only zeros may follow."""
        while chunk := self._file.read(_CHUNK):
            self._digest.update(chunk)
            if chunk.strip(b"\0"):
                raise StorageError("the archive has data after its end", hint=_HINT)


def _unpack(archive: _HashedFile, folder: Path, limit: int) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """Write all files below ``folder``; return the manifest, and size and SHA-256 of each file.

    Headers are parsed here because ``tarfile`` allocates whatever size an extended header declares.
    """
    found: dict[str, tuple[int, str]] = {}
    while any(block := archive.read(_BLOCK)):
        name, size = _member(block)
        if name in found:
            raise StorageError(f"the archive contains '{name}' twice", hint=_HINT)
        if len(found) >= FILES:
            raise StorageError(f"the archive contains more than {FILES:,} files")
        if name == MANIFEST:
            return _manifest(archive, size), found
        limit -= size
        if limit < 0 or (name == "run.json" and size > JSON_BYTES):
            raise StorageError(
                f"'{name}' in the archive has {size:,} bytes, more than the limit or the free disk space allows",
                hint="free some space, or allow more with --max-gb",
            )
        found[name] = size, _write(archive, folder / name, size)
    raise StorageError(f"not a run archive: it does not end with {MANIFEST}", hint=_HINT)


def _member(block: bytes) -> tuple[str, int]:
    """Parse name and size of a regular file from its header; reject every other type of member."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = "a link" if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) else f"of type {info.type!r}"
            raise StorageError(f"'{info.name[:NAME_BYTES]}' in the archive is {kind}; only regular files are allowed")
        if info.size < 0:
            raise ValueError("negative file size")
        return _name(info.name), info.size
    except (tarfile.TarError, ValueError) as error:
        raise StorageError(f"not a run archive: {error}", hint=_HINT) from None


def _name(text: str) -> str:
    """Return the name if it stays below the run directory; raise :class:`ValueError` otherwise."""
    parts = text.split("/")
    if not text or len(text.encode()) > NAME_BYTES or len(parts) > DEPTH:
        raise ValueError(f"the name '{text[:NAME_BYTES]}' is empty, too long or too deep")
    plain = text.isprintable() and "\\" not in text and not PurePosixPath(text).is_absolute()
    if not plain or any(part.startswith(".") or not part for part in parts):
        raise ValueError(f"the name '{text!a}' is outside the run directory or hidden")
    return text


def _write(archive: _HashedFile, path: Path, size: int) -> str:
    """Write a member to ``path``; return its SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest, remaining = hashlib.sha256(), size
    with path.open("xb") as file:
        path.chmod(0o600)
        while remaining:
            chunk = archive.read(min(remaining, _CHUNK))
            digest.update(chunk)
            file.write(chunk)
            remaining -= len(chunk)
    archive.read(-size % _BLOCK)
    return digest.hexdigest()


def _manifest(archive: _HashedFile, size: int) -> dict[str, Any]:
    if size > JSON_BYTES:
        raise StorageError(f"{MANIFEST} in the archive has {size:,} bytes, more than {JSON_BYTES:,}")
    text = archive.read(size)
    archive.read(-size % _BLOCK)
    archive.read_padding()
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{MANIFEST} in the archive is damaged: {error}", hint=_HINT) from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise StorageError(
            f"{MANIFEST} in the archive is of another version", hint="import it with the version that exported it"
        )
    return manifest


def _check(
    path: Path, manifest: Mapping[str, Any], found: Mapping[str, tuple[int, str]], digest: str, expected_digest: str
) -> None:
    """Compare the archive's digest, and the files that were unpacked with those of the manifest."""
    if expected_digest and digest != expected_digest:
        raise StorageError(f"{path} has the SHA-256 {digest}, expected {expected_digest}", hint=_HINT)
    expected = {n: (e.get("size"), e.get("sha256")) for n, e in manifest["files"].items() if isinstance(e, dict)}
    if differing := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise StorageError(f"'{differing[0]}' in {path} differs from the manifest", hint=_HINT)


def _id(path: Path, name: str) -> str:
    if not _ID.fullmatch(name):
        raise StorageError(f"invalid run id '{name[:80]!a}' for the run in {path}", hint="choose an id: --as ID")
    return name


def _rename(path: Path, folder: Path, run_id: str, *, renamed: bool) -> None:
    """Check that the directory holds a valid run, and set its new id."""
    try:
        run = RunDirectory.open(folder)
        if renamed or run.info["id"] != run_id:
            run.update(id=run_id, exported_as=str(run.info["id"]))
    except (NotFoundError, StorageError, RecursionError) as error:
        raise StorageError(
            f"{path} does not contain a valid run: {getattr(error, 'message', error)}", hint=_HINT
        ) from None
