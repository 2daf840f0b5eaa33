"""A run's log: text files that only the orchestrator writes and that followers read from where they stopped."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from pathlib import Path

_LINE = 16 << 10
_OLDER = re.compile(r"log-(\d{12,})\.txt")


class RunLog:
    """Lines with time and origin, in ``log.txt``; an over-long line is cut.

    A full file is put aside, called by the place of its first byte in the whole log (``log-000000000000.txt``). The
    newest of these are kept: a log takes no more than ``(kept + 1) * part`` bytes and a line, and followers count on.

    Parameters
    ----------
    path : Path
    part : int
        Bytes after which a file is full.
    kept : int
        Full files that are kept.
    """

    def __init__(self, path: Path, part: int = 8 << 20, kept: int = 7) -> None:
        self._path, self._part, self._kept = path, part, kept

    def write(self, origin: str, lines: Iterable[str]) -> None:
        """Append lines from ``origin`` (``server``, ``run`` or a node's name)."""
        stamp = time.strftime("%H:%M:%S")
        # A line break inside a line would let a node write lines of another origin.
        whole = (part for line in lines for part in line[:_LINE].splitlines() or [""])
        for text in (f"{stamp} {origin}: {part}".rstrip() + "\n" for part in whole):
            with self._path.open("a", encoding="utf-8", errors="replace") as file:
                file.write(text)
                full = file.tell() >= self._part
            if full:
                self._put_aside()

    def read(self, offset: int, limit: int = 1 << 20) -> tuple[list[str], int]:
        """Whole lines from byte ``offset`` of the whole log on, at most about ``limit`` bytes, and where they end.

        Lines that are kept no more are told by one in their place.
        """
        older = self._older()
        files = [*older, (_end(older), self._path)]
        start = files[0][0]
        lines = [f"… {start - offset:,} bytes of older lines are kept no more"] if offset < start else []
        offset = max(offset, start)
        for begin, path in files:
            block = _block(path, offset - begin, limit) if offset >= begin else b""
            whole = block[: block.rfind(b"\n") + 1]
            if whole:
                return [*lines, *whole.decode(errors="replace").splitlines()], offset + len(whole)
        return lines, offset

    def _older(self) -> list[tuple[int, Path]]:
        """Full files and where they begin, in order."""
        found = ((_OLDER.fullmatch(path.name), path) for path in self._path.parent.glob("log-*.txt"))
        return sorted((int(match[1]), path) for match, path in found if match)

    def _put_aside(self) -> None:
        older = self._older()
        self._path.rename(self._path.with_name(f"log-{_end(older):012d}.txt"))
        for _, path in older[: len(older) + 1 - self._kept]:
            path.unlink(missing_ok=True)


def _end(older: list[tuple[int, Path]]) -> int:
    """Where the newest file begins."""
    return older[-1][0] + older[-1][1].stat().st_size if older else 0


def _block(path: Path, offset: int, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(limit)
    except FileNotFoundError:
        return b""
