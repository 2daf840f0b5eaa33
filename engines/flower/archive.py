"""An app's files as one string that travels with a run, and back: bounded, checked, and named by a hash.

The hash is of names and contents, not of the packing: whoever reads the folder gets the same one anywhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any

from ...core.errors import ConfigError, RefusedError, StorageError

#: Longest archive as text; a run's whole configuration has to fit in one message of the control stream.
ARCHIVE_CHARACTERS = 2 << 20
FILES, UNPACKED_BYTES, NAME_BYTES = 1000, 16 << 20, 240

#: What Flower itself bundles, unless the app says otherwise.
_INCLUDE = ("*.py", "*.toml", "*.md", "*.yaml", "*.yml", "*.json", "*.jsonl", "LICENSE")
_NEVER = {"__pycache__", "build", "dist", "venv", "env", "node_modules"}


@dataclass(frozen=True, slots=True)
class Archive:
    """An app, packed.

    Attributes
    ----------
    text : str
        Base64 of a zip file.
    digest : str
        SHA-256 of its files, hexadecimal.
    """

    text: str
    digest: str


def pack_app(folder: Path, flower: Mapping[str, Any]) -> Archive:
    """Pack an app's folder.

    Parameters
    ----------
    folder : Path
    flower : Mapping
        ``[tool.flwr.app]``; its ``fab-include`` and ``fab-exclude`` choose files as they do for Flower.

    Raises
    ------
    ConfigError
        It is too large.
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
            f"the app in {folder} has {len(files)} files of {size} bytes, {len(text)} packed: more than the "
            f"{FILES}, {UNPACKED_BYTES} and {ARCHIVE_CHARACTERS} that travel with a run",
            hint="leave data out with fab-exclude; nodes bring their own",
        )
    return Archive(text, _digest(files))


def unpack_app(text: str, digest: str, target: Path) -> Path:
    """Unpack an app into the folder ``target``, unless that is there already; returns ``target``.

    Raises
    ------
    RefusedError
        The archive is damaged, too large, names files outside the folder, or is not what ``digest`` says.
    StorageError
        It cannot be written.
    """
    files = read_archive(text)
    found = _digest(files)
    if found != digest:
        raise RefusedError(f"the app's files have the hash {found}, not {digest} as the run says")
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        for name, content in files.items():
            path = fresh / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        try:
            fresh.rename(target)
        except OSError:
            shutil.rmtree(fresh, ignore_errors=True)
            if not target.is_dir():  # else another program of the same process was first
                raise
    except OSError as error:
        raise StorageError(f"cannot unpack the app into {target}: {error.strerror}") from error
    return target


def read_archive(text: str) -> dict[str, bytes]:
    """The files of an archive by name; every bound is checked before anything is inflated.

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
    except (binascii.Error, zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError) as error:
        raise RefusedError(f"the app's archive is damaged: {error}") from error


def _check(entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    if len(names) > FILES or sum(entry.file_size for entry in entries) > UNPACKED_BYTES:
        raise RefusedError(f"the app's archive holds more than {FILES} files or {UNPACKED_BYTES} bytes")
    if len({name.casefold() for name in names}) != len(names):
        raise RefusedError("the app's archive names a file twice")
    for name in names:
        parts = PurePosixPath(name).parts
        plain = bool(parts) and str(PurePosixPath(*parts)) == name and not {"..", "."} & set(parts)
        if not plain or name.startswith("/") or set(name) & set('\\:\0*?"<>|') or len(name.encode()) > NAME_BYTES:
            raise RefusedError(f"the app's archive names a file that is none of a plain folder: {name[:60]!r}")


def _content(packed: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    with packed.open(entry) as file:
        content = file.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise RefusedError(f"the app's archive lies about the size of {entry.filename}")
    return content


def _files(folder: Path, include: tuple[str, ...], exclude: tuple[str, ...]) -> dict[str, bytes]:
    found: dict[str, bytes] = {}
    try:
        for root, folders, names in os.walk(folder):
            folders[:] = [f for f in folders if not f.startswith(".") and f not in _NEVER]
            for name in (n for n in names if not n.startswith(".")):
                path = Path(root) / name
                place = path.relative_to(folder).as_posix()
                wanted = place == "pyproject.toml" or (_matches(place, include) and not _matches(place, exclude))
                if wanted and path.is_file() and not path.is_symlink():
                    found[place] = path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error
    return dict(sorted(found.items()))


def _matches(place: str, patterns: tuple[str, ...]) -> bool:
    """As in a ``.gitignore``, as far as apps use it: of a name anywhere, or of a path from the folder."""
    name = place.rpartition("/")[2]
    return any(fnmatch(place, p.lstrip("/")) or fnmatch(name, p.removeprefix("**/")) for p in patterns)


def _digest(files: Mapping[str, bytes]) -> str:
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        for part in (name.encode(), content):
            digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()
