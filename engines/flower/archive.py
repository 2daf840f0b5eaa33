"""Packs the files of a Flower app into a string for a run's configuration, and unpacks it with checks.

The hash covers file names and contents, not the zip encoding, so it is the same on every machine.
"""

from __future__ import annotations

import base64
import hashlib
import io
import lzma
import os
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ...core.errors import ConfigError, RefusedError, StorageError

#: Longest archive as text; a run's configuration must fit into one message of the control stream.
ARCHIVE_CHARACTERS = 2 << 20
#: Largest number of files, total size in bytes, and length of a file name in bytes.
FILES, UNPACKED_BYTES, NAME_BYTES = 1000, 16 << 20, 240

#: Files that Flower bundles by default.
_INCLUDE = ("*.py", "*.toml", "*.md", "*.yaml", "*.yml", "*.json", "*.jsonl", "LICENSE")
_NEVER = {"__pycache__", "build", "dist", "venv", "env", "node_modules"}


@dataclass(frozen=True, slots=True)
class Archive:
    """A packed app.

    Attributes
    ----------
    text : str
        Base64 of a zip file.
    digest : str
        SHA-256 of file names and contents, hexadecimal.
    """

    text: str
    digest: str


def pack_app(folder: Path, flower: Mapping[str, Any]) -> Archive:
    """Pack the folder of an app.

    Parameters
    ----------
    folder : Path
        The app, with a ``pyproject.toml``.
    flower : Mapping
        Its table ``[tool.flwr.app]``; ``fab-include`` and ``fab-exclude`` select files as in Flower.

    Raises
    ------
    ConfigError
        The app exceeds a limit.
    StorageError
        A file cannot be read.
    """
    files = _files(folder, tuple(flower.get("fab-include", _INCLUDE)), tuple(flower.get("fab-exclude", ())))
    size = sum(len(content) for content in files.values())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in files.items():
            packed.writestr(zipfile.ZipInfo(name), content, zipfile.ZIP_DEFLATED)
    text = base64.b64encode(buffer.getvalue()).decode()
    if len(files) > FILES or size > UNPACKED_BYTES or len(text) > ARCHIVE_CHARACTERS:
        raise ConfigError(
            f"the app in {folder} has {len(files)} files, {size} bytes and {len(text)} packed characters; the limits "
            f"are {FILES}, {UNPACKED_BYTES} and {ARCHIVE_CHARACTERS}",
            hint="exclude data with fab-exclude; nodes provide their own",
        )
    return Archive(text, _digest(files))


def unpack_app(text: str, digest: str, target: Path) -> Path:
    """Unpack an app into the folder ``target``, unless it exists already; returns ``target``.

    Raises
    ------
    RefusedError
        The archive is damaged, exceeds a limit, names files outside the folder, or has another hash than ``digest``.
    StorageError
        A file cannot be written.
    """
    files = read_archive(text)
    found = _digest(files)
    if found != digest:
        raise RefusedError(f"the app's files have the hash {found}, not {digest} as in the run's configuration")
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for name, content in files.items():
            path = temporary / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            temporary.rename(target)
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            if not target.is_dir():  # otherwise another program of this process has unpacked it meanwhile
                raise
    except OSError as error:
        raise StorageError(f"cannot unpack the app into {target}: {error.strerror}") from error
    return target


#: What zipfile and the decompressors raise for damaged archives.
_DAMAGE = (
    *(ValueError, OSError, EOFError, RuntimeError, OverflowError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error),
)


def read_archive(text: str) -> dict[str, bytes]:
    """Read the files of an archive by name; all limits are checked before decompression.

    Raises
    ------
    RefusedError
        As for :func:`unpack_app`.
    """
    if len(text) > ARCHIVE_CHARACTERS:
        raise RefusedError(f"the app's archive has {len(text)} characters, more than {ARCHIVE_CHARACTERS}")
    try:
        with zipfile.ZipFile(io.BytesIO(base64.b64decode(text, validate=True))) as packed:
            entries = packed.infolist()
            _check(entries)
            return {entry.filename: _content(packed, entry) for entry in entries}
    except _DAMAGE as error:
        raise RefusedError(f"the app's archive is damaged: {error}") from error


def _check(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > FILES or sum(entry.file_size for entry in entries) > UNPACKED_BYTES:
        raise RefusedError(f"the app's archive has more than {FILES} files or {UNPACKED_BYTES} bytes")
    if len({name.casefold() for name in names}) != len(names):
        raise RefusedError("the app's archive has a file name twice")
    for name in names:
        parts = PurePosixPath(name).parts
        plain = bool(parts) and str(PurePosixPath(*parts)) == name and not {"..", "."} & set(parts)
        if not plain or name.startswith("/") or set(name) & set('\\:\0*?"<>|') or len(name.encode()) > NAME_BYTES:
            raise RefusedError(f"the app's archive has an invalid file name: {name[:60]!r}")


def _content(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with packed.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise RefusedError(f"the app's archive has a wrong size for {entry.filename}")
    return content


def _files(folder: Path, include: tuple[str, ...], exclude: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        for root, folders, names in os.walk(folder):
            folders[:] = [f for f in folders if not f.startswith(".") and f not in _NEVER]
            for name in (n for n in names if not n.startswith(".")):
                path = Path(root) / name
                relative = path.relative_to(folder).as_posix()
                selected = _matches(relative, include) and not _matches(relative, exclude)
                if (relative == "pyproject.toml" or selected) and path.is_file() and not path.is_symlink():
                    found[relative] = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error
    return dict(sorted(found.items()))


def _matches(path: str, patterns: tuple[str, ...]) -> bool:
    """Whether a relative path matches a pattern, in a subset of ``.gitignore``'s syntax: file names or whole paths."""
    name = path.rpartition("/")[2]
    return any(fnmatch(path, p.lstrip("/")) or fnmatch(name, p.removeprefix("**/")) for p in patterns)


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
