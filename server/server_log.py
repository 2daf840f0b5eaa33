"""The server's own log: ``server.log`` in its home, and the three before it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from logging.handlers import RotatingFileHandler
from pathlib import Path

_BYTES, _OLDER = 4 << 20, 3


@contextmanager
def server_log(home: Path) -> Iterator[None]:
    """Keep what the server says, from warnings down to who came and went; at most 16 MiB."""
    logger = logging.getLogger("farshore")
    handler = RotatingFileHandler(
        home / "server.log", maxBytes=_BYTES, backupCount=_OLDER, encoding="utf-8", delay=True
    )
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
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
