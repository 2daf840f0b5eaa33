"""The log of a run: rotated text files, written by the orchestrator and read incrementally by followers."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

_MAX_LINE = 16 << 10
_ROTATED = re.compile(r"log-(\d{12,})\.txt")


class RunLog:
    """Lines with time and origin, in ``log.txt``; an overlong line is truncated.

    A full file is rotated to ``log-<offset>.txt``, where the offset is that of its first byte in the whole log. The
    ``rotated_files`` newest of these are kept, so a log takes at most ``(rotated_files + 1) * file_bytes`` bytes plus
    one line. Offsets of followers stay valid across rotations.

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

    def write(self, origin: str, lines: Iterable[str]) -> None:
        """Append lines from ``origin`` (``server``, ``run`` or a node's name)."""
        stamp = time.strftime("%H:%M:%S")
        # Split at line breaks, so that a node cannot forge lines of another origin.
        parts = (part for line in lines for part in line[:_MAX_LINE].splitlines() or [""])
        for text in (f"{stamp} {origin}: {part}".rstrip() + "\n" for part in parts):
            with self._path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
                full = file.tell() >= self._file_bytes
            if full:
                self._rotate()

    def read(self, offset: int, limit: int = 1 << 20) -> tuple[list[str], int]:
        """Read complete lines from byte ``offset`` of the whole log on, about ``limit`` bytes at most.

        Returns
        -------
        lines : list of str
            One line reports how many bytes were skipped because they are no longer kept.
        offset : int
            Where to continue reading.
        """
        rotated = self._rotated()
        files = [*rotated, (_end(rotated), self._path)]
        start = files[0][0]
        lines = [f"… {start - offset:,} bytes of older lines are no longer kept"] if offset < start else []
        offset = max(offset, start)
        for begin, path in files:
            block = _block(path, offset - begin, limit) if offset >= begin else b""
            whole = block[: block.rfind(b"\n") + 1]
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
