"""Data connections between processes of one machine: length-prefixed chunks over a unix socket.

The length has four bytes. The first chunk of a client is its ticket. If it is refused, the server replies with a chunk
that contains ``refused:`` and the reason, which no frame can begin with.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from pathlib import Path

from ..core.errors import RefusedError, WireError
from .chunks import CHUNK_BYTES
from .grpc_attach import ConnectionHandler
from .pump import Read, Write

logger = logging.getLogger(__name__)

_MAX_CHUNK_BYTES = 2 * CHUNK_BYTES
_BUFFER = 4 * CHUNK_BYTES
_REFUSED = b"refused: "


def _chunk_functions(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[Read, Write]:
    """Return functions that read and write length-prefixed chunks."""

    async def read() -> bytes | None:
        try:
            size = int.from_bytes(await reader.readexactly(4), "little")
            if size > _MAX_CHUNK_BYTES:
                raise WireError(f"a local connection announces a chunk of {size} bytes, over {_MAX_CHUNK_BYTES}")
            return await reader.readexactly(size)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None

    async def write(chunk: bytes) -> None:
        writer.write(len(chunk).to_bytes(4, "little"))
        writer.write(chunk)
        await writer.drain()

    return read, write


async def serve_local(path: Path, serve: ConnectionHandler) -> asyncio.Server:
    """Listen on a unix socket that only its owner may use.

    Parameters
    ----------
    path : Path
        Of the socket.
    serve : callable
        ``await serve(ticket, read, write)`` serves a connection until it ends; a :class:`RefusedError` is reported to
        the client.
    """

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        read, write = _chunk_functions(reader, writer)
        try:
            ticket = await read()
            if ticket is None:
                return
            await serve(ticket.decode(errors="replace"), read, write)
        except RefusedError as error:
            logger.warning("refused a local connection: %s", error)
            with suppress(ConnectionError):
                await write(_REFUSED + error.message.encode())
        except (WireError, ConnectionError) as error:
            logger.warning("closed a local connection: %s", error)
        except asyncio.CancelledError:
            pass  # the loop is stopping; Python 3.11 would print a traceback for every connection
        finally:
            writer.close()

    server = await asyncio.start_unix_server(connected, str(path), limit=_BUFFER)
    path.chmod(0o600)
    return server


async def open_local(path: Path, ticket: str) -> tuple[Read, Write, asyncio.StreamWriter]:
    """Connect to a socket of :func:`serve_local`.

    Returns
    -------
    read, write : callable
    writer : asyncio.StreamWriter
        To close the connection.

    Raises
    ------
    OSError
        No process is listening on the socket.
    """
    reader, writer = await asyncio.open_unix_connection(str(path), limit=_BUFFER)
    read, write = _chunk_functions(reader, writer)
    await write(ticket.encode())
    return read, write, writer


def check_not_refused(first: bytes) -> None:
    """Check the first chunk of the server's reply.

    Raises
    ------
    RefusedError
        The server refused the ticket.
    """
    if first.startswith(_REFUSED):
        raise RefusedError(first[len(_REFUSED) :].decode(errors="replace"))
