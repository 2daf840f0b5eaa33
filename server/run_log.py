"""A run's log: a text file that only the orchestrator writes and that followers read from where they stopped."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

_LINE = 16 << 10
_FILE = 256 << 20


class RunLog:
    """Lines with time and origin; an over-long line is cut, and a file of 256 MiB takes no more.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, origin: str, lines: Iterable[str]) -> None:
        """Append lines from ``origin`` (``server``, ``run`` or a node's name)."""
        stamp = time.strftime("%H:%M:%S")
        # A line break inside a line would let a node write lines of another origin.
        whole = (part for line in lines for part in line[:_LINE].splitlines() or [""])
        text = "".join(f"{stamp} {origin}: {part}".rstrip() + "\n" for part in whole)
        with self._path.open("a", encoding="utf-8", errors="replace") as file:
            if file.tell() < _FILE:
                file.write(text)

    def read(self, offset: int, limit: int = 1 << 20) -> tuple[list[str], int]:
        """Whole lines from byte ``offset`` on, at most about ``limit`` bytes, and where they end."""
        try:
            with self._path.open("rb") as file:
                file.seek(offset)
                block = file.read(limit)
        except FileNotFoundError:
            return [], offset
        whole = block[: block.rfind(b"\n") + 1]
        return whole.decode(errors="replace").splitlines(), offset + len(whole)
