"""A run directory as one tar file that moves between machines, and back: bounded, checked, without links.

The archive is a plain tar of regular files; the last of them, ``farshore-run.json``, names the run and holds each other
file's size and SHA-256. So an archive that was cut off, or changed on its way, is refused as a whole.
"""

from __future__ import annotations

import hashlib
import json
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
#: Longest name, as a tar header holds it without an extension; deepest folder; most files.
NAME_BYTES, DEPTH, FILES = 100, 8, 100_000
#: Most bytes of all files together, and of a JSON file that is read as a whole.
TOTAL_BYTES, JSON_BYTES = 64 << 30, 64 << 20
_BLOCK, _CHUNK = tarfile.BLOCKSIZE, 1 << 20
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HINT = "have it exported and copied once more"


@dataclass(frozen=True, slots=True)
class Moved:
    """What was written or read.

    Attributes
    ----------
    id : str
        The run's, here.
    path : Path
        The archive, or the run directory.
    files, bytes : int
        Of the run.
    sha256 : str
        Of the archive, hexadecimal.
    """

    id: str
    path: Path
    files: int
    bytes: int
    sha256: str


def export_run(run: RunDirectory, path: Path, *, checkpoints: bool = True) -> Moved:
    """Write a run directory as a tar file.

    Of a run that goes on, each file is written as long as it was when its turn came.

    Parameters
    ----------
    run : RunDirectory
    path : Path
        Replaced in one step if it exists.
    checkpoints : bool
        Whether the states that a killed run goes on from go with it.

    Raises
    ------
    StorageError
        A name does not fit, there is a link in the directory, or the disk refuses.
    """
    told: dict[str, dict[str, Any]] = {}
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with temporary.open("wb") as raw:
            archive = _Counted(raw, digest)
            for name, source in _members(run.path, path, checkpoints=checkpoints):
                try:
                    with source.open("rb") as file:
                        told[name] = _append(archive, name, file, source.stat().st_size)
                except FileNotFoundError:  # a checkpoint that a newer one has replaced
                    continue
            manifest = {"format": FORMAT, "id": run.info["id"], "farshore": Versions.local().farshore, "files": told}
            text = json.dumps(manifest).encode()
            archive.write(_header(MANIFEST, len(text)) + text + bytes(-len(text) % _BLOCK + 2 * _BLOCK))

    files.replace(path, write)
    return Moved(
        str(run.info["id"]), path, len(told), sum(entry["size"] for entry in told.values()), digest.hexdigest()
    )


def import_run(
    path: Path, folder: Path, *, name: str | None = None, sha256: str = "", total_bytes: int = TOTAL_BYTES
) -> Moved:
    """Unpack a run into ``folder``; nothing is there unless all of it is sound.

    Parameters
    ----------
    path : Path
        What :func:`export_run` wrote.
    folder : Path
        Of run directories.
    name : str, optional
        The run's id here; by default the one that it has.
    sha256 : str
        What the archive must have, hexadecimal; empty = any.
    total_bytes : int
        Refuse more than this, before any of it is written.

    Raises
    ------
    NotFoundError
        There is no such file.
    StorageError
        It is no archive of a run, damaged, too large, or holds what no run directory does; or a run has that id.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        unpacked = Path(tempfile.mkdtemp(prefix=".import-", dir=folder))
    except OSError as error:
        raise files.storage_error(f"cannot unpack into {folder}", error) from error
    try:
        with _reading(path) as raw:
            digest = hashlib.sha256()
            room = min(total_bytes, shutil.disk_usage(folder).free)
            manifest, found = _unpack(_Counted(raw, digest), unpacked, room)
        _check(path, manifest, found, digest.hexdigest(), sha256.lower())
        run_id = _id(path, name or str(manifest.get("id")))
        _rename(path, unpacked, run_id, renamed=run_id != manifest.get("id"))
        target = folder / run_id
        if target.exists():
            raise StorageError(f"{folder} already holds a run '{run_id}'", hint="give it another id: --as ID")
        unpacked.rename(target)
    except OSError as error:
        raise files.storage_error(f"cannot unpack {path} into {folder}", error) from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    return Moved(run_id, target, len(found), sum(size for size, _ in found.values()), digest.hexdigest())


# ---- writing ---------------------------------------------------------------------------------------------------------


def _members(folder: Path, archive: Path, *, checkpoints: bool) -> Iterator[tuple[str, Path]]:
    """Names and paths of all files, in order; hidden ones are unfinished."""
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if any(part.startswith(".") for part in relative.parts) or path == archive.absolute():
            continue
        if path.is_symlink():
            raise StorageError(f"{path} is a link, and links do not travel", hint="put the file itself there")
        if not checkpoints and relative.parts[0] == "checkpoints":
            continue
        if path.is_file():
            try:
                yield _name(relative.as_posix()), path
            except ValueError as error:
                raise StorageError(f"{path} cannot travel: {error}", hint="move that file out of the run") from None


def _append(archive: _Counted, name: str, file: IO[bytes], size: int) -> dict[str, Any]:
    digest, left = hashlib.sha256(), size
    archive.write(_header(name, size))
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise StorageError(f"{name} became shorter while it was read", hint="export the run once it has ended")
        digest.update(chunk)
        archive.write(chunk)
        left -= len(chunk)
    archive.write(bytes(-size % _BLOCK))
    return {"size": size, "sha256": digest.hexdigest()}


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = size, 0o600, int(time.time())
    return info.tobuf(tarfile.GNU_FORMAT)


# ---- reading ---------------------------------------------------------------------------------------------------------


@contextmanager
def _reading(path: Path) -> Iterator[IO[bytes]]:
    try:
        file = path.open("rb")
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no file {path}") from error
    with file:
        yield file


class _Counted:
    """A file whose bytes are all hashed as they are read or written."""

    def __init__(self, file: IO[bytes], digest: Any) -> None:
        self._file, self._digest = file, digest

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._digest.update(data)

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes."""
        data = self._file.read(size)
        self._digest.update(data)
        if len(data) != size:
            raise StorageError("the archive ends in the middle of a file", hint=_HINT)
        return data

    def rest(self) -> None:
        """Read to the end, which may hold zeros only."""
        while chunk := self._file.read(_CHUNK):
            self._digest.update(chunk)
            if chunk.strip(b"\0"):
                raise StorageError("the archive goes on after its end", hint=_HINT)


def _unpack(archive: _Counted, folder: Path, room: int) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """Write all files below ``folder``; returns the manifest, and size and SHA-256 of each file.

    Headers are read one by one here: the library's reader takes as much memory for an extension as its header asks for.
    """
    found: dict[str, tuple[int, str]] = {}
    while any(block := archive.read(_BLOCK)):
        name, size = _member(block)
        if name in found:
            raise StorageError(f"the archive holds '{name}' twice", hint=_HINT)
        if len(found) >= FILES:
            raise StorageError(f"the archive holds more than {FILES:,} files")
        if name == MANIFEST:
            return _manifest(archive, size), found
        room -= size
        if room < 0 or (name == "run.json" and size > JSON_BYTES):
            raise StorageError(
                f"the archive's '{name}' has {size:,} bytes, more than there is room for",
                hint="free some space, or allow more with --max-gb",
            )
        found[name] = size, _write(archive, folder / name, size)
    raise StorageError(f"it is no archive of a run: it does not end with {MANIFEST}", hint=_HINT)


def _member(block: bytes) -> tuple[str, int]:
    """Name and size of a regular file from its header; everything else is refused."""
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "strict")
        if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            kind = "a link" if info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE) else f"of type {info.type!r}"
            raise StorageError(f"the archive's '{info.name[:NAME_BYTES]}' is {kind}; only files belong there")
        if info.size < 0:
            raise ValueError("a size below zero")
        return _name(info.name), info.size
    except (tarfile.TarError, ValueError) as error:
        raise StorageError(f"it is no archive of a run: {error}", hint=_HINT) from None


def _name(text: str) -> str:
    """The name itself, if it stays below a run directory; raises :class:`ValueError`."""
    parts = text.split("/")
    if not text or len(text.encode()) > NAME_BYTES or len(parts) > DEPTH:
        raise ValueError(f"the name '{text[:NAME_BYTES]}' is empty, too long or too deep")
    plain = text.isprintable() and "\\" not in text and not PurePosixPath(text).is_absolute()
    if not plain or any(part.startswith(".") or not part for part in parts):
        raise ValueError(f"the name '{text!a}' leads out of the run directory, or is hidden")
    return text


def _write(archive: _Counted, path: Path, size: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    digest, left = hashlib.sha256(), size
    with path.open("xb") as file:
        path.chmod(0o600)
        while left:
            chunk = archive.read(min(left, _CHUNK))
            digest.update(chunk)
            file.write(chunk)
            left -= len(chunk)
    archive.read(-size % _BLOCK)
    return digest.hexdigest()


def _manifest(archive: _Counted, size: int) -> dict[str, Any]:
    if size > JSON_BYTES:
        raise StorageError(f"the archive's {MANIFEST} has {size:,} bytes, more than {JSON_BYTES:,}")
    text = archive.read(size)
    archive.read(-size % _BLOCK)
    archive.rest()
    try:
        manifest = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise StorageError(f"the archive's {MANIFEST} is damaged: {error}", hint=_HINT) from None
    if (
        not isinstance(manifest, dict)
        or manifest.get("format") != FORMAT
        or not isinstance(manifest.get("files"), dict)
    ):
        raise StorageError(f"the archive's {MANIFEST} is of another version", hint="import it with that version")
    return manifest


def _check(
    path: Path, manifest: Mapping[str, Any], found: Mapping[str, tuple[int, str]], digest: str, wanted: str
) -> None:
    if wanted and digest != wanted:
        raise StorageError(f"{path} has the SHA-256 {digest}, not {wanted}", hint=_HINT)
    told = {n: (e.get("size"), e.get("sha256")) for n, e in manifest["files"].items() if isinstance(e, dict)}
    if differing := sorted(name for name in told.keys() | found.keys() if told.get(name) != found.get(name)):
        raise StorageError(f"'{differing[0]}' in {path} is not what was exported", hint=_HINT)


def _id(path: Path, name: str) -> str:
    if not _ID.fullmatch(name):
        raise StorageError(f"the run in {path} is called '{name[:80]!a}', which is no id", hint="give it one: --as ID")
    return name


def _rename(path: Path, folder: Path, run_id: str, *, renamed: bool) -> None:
    """See to it that the directory holds a run, under its new name."""
    try:
        run = RunDirectory.open(folder)
        if renamed or run.info["id"] != run_id:
            run.update(id=run_id, exported_as=str(run.info["id"]))
    except (NotFoundError, StorageError, RecursionError) as error:
        raise StorageError(f"{path} holds no sound run: {getattr(error, 'message', error)}", hint=_HINT) from None
