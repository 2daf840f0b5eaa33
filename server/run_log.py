"""The log of a run: rotated text files, written by the orchestrator and read incrementally by followers."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from ..core.bounds import MAX_LINE, cut

_log = logging.getLogger(__name__)

#: Lines and characters of one message.
_MAX_LINES, _MAX_CHARACTERS = 2_000, 512 << 10
_ROTATED = re.compile(r"log-(\d{12,})\.txt")


class RunLog:
    """Lines with time and origin, in ``log.txt``; overlong lines and messages are cut.

    A full file is rotated to ``log-<offset>.txt``, where the offset is that of its first byte in the whole log. The
    ``rotated_files`` newest of these are kept, so a log takes at most ``(rotated_files + 1) * file_bytes`` bytes plus
    one message per file. Offsets of followers stay valid across rotations. Thread-safe.

    Parameters
    ----------
    path : Path
    file_bytes : int
        Size at which a file is rotated.
    rotated_files : int
        Number of rotated files to keep.
    """

    def __init__(self, path: Path, file_bytes: int = 8 << 20, rotated_files: int = 7) -> None:
        self._path, self._file_bytes, self._rotated_files = path, file_bytes, rotated_files
        self._lock = threading.Lock()  # followers read in threads
        self._failed = False

    def write(self, origin: str, lines: Sequence[str]) -> None:
        """Append lines from ``origin`` (``server``, ``run`` or a node's name) in one operation of bounded size.

        Of a message with very many lines or characters, the rest is left out and counted. A full disk loses lines,
        which is logged once, but does not end the run.
        """
        data = _format(origin, lines).encode(errors="replace")
        with self._lock:
            try:
                with self._path.open("ab") as file:
                    file.write(data)
                    full = file.tell() >= self._file_bytes
                if full:
                    self._rotate()
                self._failed = False
            except OSError as error:
                if not self._failed:
                    _log.warning("cannot write %s: %s", self._path, error.strerror)
                self._failed = True

    def read(self, offset: int, limit: int = 1 << 20) -> tuple[list[str], int]:
        """Read complete lines from byte ``offset`` of the whole log on, about ``limit`` bytes at most.

        Returns
        -------
        lines : list of str
            One line reports how many bytes were skipped because they are no longer kept.
        offset : int
            Where to continue reading.
        """
        with self._lock:
            return self._read(offset, limit)

    def _read(self, offset: int, limit: int) -> tuple[list[str], int]:
        rotated = self._rotated()
        files = [*rotated, (_end(rotated), self._path)]
        start = files[0][0]
        lines = [f"… {start - offset:,} bytes of older lines are no longer kept"] if offset < start else []
        offset = max(offset, start)
        for begin, path in files:
            block = _block(path, offset - begin, limit) if offset >= begin else b""
            whole = block[: block.rfind(b"\n") + 1] or (block if len(block) == limit else b"")
            if whole:
                return [*lines, *whole.decode(errors="replace").splitlines()], offset + len(whole)
        return lines, offset

    def _rotated(self) -> list[tuple[int, Path]]:
        """Return the rotated files with the offset of their first byte, in order."""
        found = ((_ROTATED.fullmatch(path.name), path) for path in self._path.parent.glob("log-*.txt"))
        return sorted((int(match[1]), path) for match, path in found if match)

    def _rotate(self) -> None:
        rotated = self._rotated()
        self._path.rename(self._path.with_name(f"log-{_end(rotated):012d}.txt"))
        for _, path in rotated[: len(rotated) + 1 - self._rotated_files]:
            path.unlink(missing_ok=True)


def _format(origin: str, lines: Sequence[str]) -> str:
    stamp = time.strftime("%H:%M:%S")
    found: list[str] = []
    size = taken = 0
    for line in lines[:_MAX_LINES]:
        if size > _MAX_CHARACTERS or len(found) >= _MAX_LINES:
            break
        # Split at line breaks, so that a node cannot forge lines of another origin.
        parts = cut(line, MAX_LINE).splitlines() or [""]
        found += [f"{stamp} {origin}: {part}".rstrip() + "\n" for part in parts[:_MAX_LINES]]
        size, taken = size + len(line), taken + 1
    if taken < len(lines):
        found.append(f"{stamp} {origin}: … ({len(lines) - taken:,} more lines of this message)\n")
    return "".join(found)


def _end(rotated: list[tuple[int, Path]]) -> int:
    """Return the offset after the newest rotated file."""
    return rotated[-1][0] + rotated[-1][1].stat().st_size if rotated else 0


def _block(path: Path, offset: int, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        return b""
