"""The server's log: ``server.log`` in its home, with three rotated files."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

from ..core.text import printable

_FILE_BYTES, _ROTATED_FILES = 4 << 20, 3


class _PrintableFormatter(logging.Formatter):
    """Shows control characters in what peers sent as escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def server_log(home: Path) -> Iterator[None]:
    """Write the log of the ``farshore`` loggers, from level INFO, to files in ``home``; at most 16 MiB."""
    logger = logging.getLogger("farshore")
    handler = RotatingFileHandler(
        home / "server.log", maxBytes=_FILE_BYTES, backupCount=_ROTATED_FILES, encoding="utf-8", delay=True
    )
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    before = logger.level
    if logger.getEffectiveLevel() > logging.INFO:
        logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)
        handler.close()
