"""Data connections between processes of one machine: length-prefixed chunks over a unix socket.

The length has four bytes. The first chunk of a client is its ticket. If it is refused, the server replies with a chunk
that contains ``refused:`` and the reason, which no frame can begin with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..core.errors import RefusedError, WireError
from .chunks import CHUNK_BYTES
from .frame import Buffer
from .grpc_attach import ConnectionHandler

logger = logging.getLogger(__name__)

_MAX_CHUNK_BYTES = 2 * CHUNK_BYTES
#: Requested size of the kernel's buffer per direction: with room for a whole chunk, fewer writes have to wait.
_KERNEL_BYTES = 2 * CHUNK_BYTES
_LENGTH_BYTES = 4
_BACKLOG = 128
#: Pause after a failed accept (too many open files), in seconds.
_ACCEPT_PAUSE = 1.0
_REFUSED = b"refused: "


class LocalConnection:
    """A connection over a unix socket, as chunks.

    Chunks are received into their final memory and sent from where they are: asyncio's streams copy each of them two to
    four times, which would make a relayed connection half as fast.

    Parameters
    ----------
    sock : socket.socket
        Connected; closed by :meth:`close`.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BYTES)
        self._socket = sock
        self._loop = asyncio.get_running_loop()

    async def read(self) -> Buffer | None:
        """Return the next chunk, or None at the end of the connection.

        Raises
        ------
        WireError
            The peer announces a chunk over the limit.
        """
        try:
            if (length := await self._receive(_LENGTH_BYTES)) is None:
                return None
            size = int.from_bytes(length, "little")
            if size > _MAX_CHUNK_BYTES:
                raise WireError(f"a local connection announces a chunk of {size} bytes, over {_MAX_CHUNK_BYTES}")
            chunk = await self._receive(size)
        except OSError:
            return None
        await asyncio.sleep(0)  # data that has already arrived is received without a pause for other connections
        return chunk

    async def _receive(self, size: int) -> memoryview | None:
        view = np.empty(size, np.uint8).data
        filled = 0
        while filled < size:
            count = await self._loop.sock_recv_into(self._socket, view[filled:])
            if not count:
                return None
            filled += count
        return view.toreadonly()

    async def write(self, chunk: Buffer) -> None:
        """Send a chunk; returns when the kernel has taken all of it, or when the connection has ended.

        Only :meth:`read` reports the end: what the peer sent before it closed, its goodbye above all, must still be
        read, and an error here would end the connection first.
        """
        with suppress(ConnectionError):
            await self._send(memoryview(chunk))

    async def _send(self, view: memoryview) -> None:
        length = view.nbytes.to_bytes(_LENGTH_BYTES, "little")
        try:
            sent = self._socket.sendmsg((length, view))
        except BlockingIOError:
            sent = 0
        if sent < _LENGTH_BYTES:
            await self._loop.sock_sendall(self._socket, length[sent:])
            sent = _LENGTH_BYTES
        if (rest := view[sent - _LENGTH_BYTES :]).nbytes:
            await self._loop.sock_sendall(self._socket, rest)

    def end_writing(self) -> None:
        """Tell the peer that no more chunks come; it can still send."""
        self._shut_down(socket.SHUT_WR)

    def end(self) -> None:
        """End both directions; the peer can read what was sent, and waiting reads and writes here return."""
        self._shut_down(socket.SHUT_RDWR)

    def _shut_down(self, how: int) -> None:
        with suppress(OSError):  # the peer was faster
            self._socket.shutdown(how)

    def close(self) -> None:
        """Free the socket; nothing may be reading or writing."""
        self._socket.close()


class LocalServer:
    """Accepts connections on a unix socket; created by :func:`serve_local`."""

    def __init__(self, listener: socket.socket, serve: ConnectionHandler) -> None:
        self._listener = listener
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._accepting = self._start(self._accept())

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        with self._listener:
            while True:
                try:
                    sock, _ = await loop.sock_accept(self._listener)
                except OSError as error:
                    logger.warning("cannot accept a local connection: %s", error)
                    await asyncio.sleep(_ACCEPT_PAUSE)
                    continue
                self._start(self._connected(LocalConnection(sock)))

    async def _connected(self, connection: LocalConnection) -> None:
        try:
            ticket = await connection.read()
            if ticket is None:
                return
            await self._serve(bytes(ticket).decode(errors="replace"), connection.read, connection.write)
        except RefusedError as error:
            logger.warning("refused a local connection: %s", error)
            await connection.write(_REFUSED + error.message.encode())
        except (WireError, ConnectionError) as error:
            logger.warning("closed a local connection: %s", error)
        finally:
            connection.close()

    def close(self) -> None:
        """Accept no more connections; open ones go on."""
        self._accepting.cancel()


async def serve_local(path: Path, serve: ConnectionHandler) -> LocalServer:
    """Listen on a unix socket that only its owner may use.

    Parameters
    ----------
    path : Path
        Of the socket.
    serve : callable
        ``await serve(ticket, read, write)`` serves a connection until it ends; a :class:`RefusedError` is reported to
        the client.

    Raises
    ------
    OSError
        The socket cannot be made.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        if path.is_socket():
            path.unlink()  # of a process that was killed
        listener.bind(os.fspath(path))
        path.chmod(0o600)  # before it listens: nobody can have connected
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return LocalServer(listener, serve)


async def open_local(path: Path, ticket: str) -> LocalConnection:
    """Connect to a socket of :func:`serve_local`.

    Raises
    ------
    OSError
        No process is listening on the socket.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection = LocalConnection(sock)
        await asyncio.get_running_loop().sock_connect(sock, os.fspath(path))
        await connection.write(ticket.encode())
    except BaseException:
        sock.close()
        raise
    return connection


def check_not_refused(first: Buffer) -> None:
    """Check the first chunk of the server's reply.

    Raises
    ------
    RefusedError
        The server refused the ticket.
    """
    if bytes(first[: len(_REFUSED)]) == _REFUSED:
        raise RefusedError(bytes(first[len(_REFUSED) :]).decode(errors="replace"))
