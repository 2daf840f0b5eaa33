"""Connections between processes of one machine: chunks with a four-byte length over a unix socket, the ticket first.

A ticket that is refused is answered by a chunk that no frame starts like, with the reason.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from ..core.errors import RefusedError, WireError
from .chunks import CHUNK_BYTES
from .grpc_attach import Serve
from .pump import Read, Write

logger = logging.getLogger(__name__)

_LARGEST = 2 * CHUNK_BYTES
_BUFFER = 4 * CHUNK_BYTES
_REFUSED = b"refused: "


def ends(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Read, Write]:
    """``read`` and ``write`` of a connection, in chunks."""

    async def read() -> bytes | None:
        try:
            size = int.from_bytes(await reader.readexactly(4), "little")
            if size > _LARGEST:
                raise WireError(f"a local connection announces a chunk of {size} bytes")
            return await reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def write(chunk: bytes) -> None:
        writer.write(len(chunk).to_bytes(4, "little"))
        writer.write(chunk)
        await writer.drain()

    return read, write


async def serve_local(path: Path, serve: Serve) -> asyncio.Server:
    """Listen on a unix socket; ``await serve(ticket, read, write)`` serves each connection until it ends.

    The socket is readable for its owner only.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        read, write = ends(reader, writer)
        try:
            ticket = await read()
            if ticket is None:
                return
            await serve(ticket.decode(errors="replace"), read, write)
        except RefusedError as error:
            logger.warning("a local connection was refused: %s", error)
            with suppress(ConnectionError):
                await write(_REFUSED + error.message.encode())
        except (WireError, ConnectionError) as error:
            logger.warning("a local connection was closed: %s", error)
        except asyncio.CancelledError:
            pass  # the loop stops; Python 3.11 would print every cancelled connection
        finally:
            writer.close()

    server = await asyncio.start_unix_server(connected, str(path), limit=_BUFFER)
    path.chmod(0o600)
    return server


async def open_local(path: Path, ticket: str) -> tuple[Read, Write, asyncio.StreamWriter]:
    """Connect to :func:`serve_local`; returns the two ends and the writer, to close.

    Raises
    ------
    OSError
        Nobody listens there.
    """
    reader, writer = await asyncio.open_unix_connection(str(path), limit=_BUFFER)
    read, write = ends(reader, writer)
    await write(ticket.encode())
    return read, write, writer


def check_welcome(first: bytes) -> None:
    """Look at the first chunk of an answer.

    Raises
    ------
    RefusedError
        It says that the ticket was refused.
    """
    if first.startswith(_REFUSED):
        raise RefusedError(first[len(_REFUSED) :].decode(errors="replace"))
