"""Socket bytes: what TCP carried on a port, as the kernel counts it; TLS and HTTP/2 included, TCP and IP headers not.

Linux tells it by netlink (``sock_diag``): a dump of the sockets that are open, and a message with the last figures when
one is destroyed. So nothing is polled and no short connection is missed. Elsewhere there is no meter.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_SOCK_DIAG_BY_FAMILY = 20
_DONE, _ERROR = 3, 2
_REQUEST_DUMP = 0x301
_NETLINK_SOCK_DIAG = 4
# Groups of destroyed TCP sockets over IPv4 and IPv6, as a bit mask.
_DESTROYED = 0b101
_ALL_STATES = 0xFFF
_INFO = 2
_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=BBBBI48x")
_ATTRIBUTE = struct.Struct("=HH")
_DIAG_BYTES = 72
_BYTES_ACKED, _BYTES_RECEIVED = 120, 128


@dataclass(frozen=True, slots=True)
class SocketBytes:
    """Bytes of TCP streams that were dialled to one port.

    Attributes
    ----------
    up, down : int
        From and to those who dialled.
    connections : int
        How many there were.
    """

    up: int
    down: int
    connections: int


@dataclass(frozen=True, slots=True)
class _Seen:
    cookie: bytes
    port: int
    inode: int
    up: int
    down: int


class SocketMeter:
    """Counts the bytes of every connection of this network namespace that is dialled to ``port``; a context manager.

    Connections of this very process are left out: they are the observer's own.

    Parameters
    ----------
    port : int

    Raises
    ------
    OSError
        The system has no such meter; see :meth:`available`.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._counts: dict[bytes, tuple[int, int]] = {}
        self._own: set[bytes] = set()
        if sys.platform != "linux":
            raise OSError("only Linux counts the bytes of other processes' sockets")
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
        try:
            self._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            self._events.bind((0, _DESTROYED))
            self._events.setblocking(False)
            list(_dump(socket.AF_INET))
        except OSError:
            self._events.close()
            raise

    @classmethod
    def open(cls, port: int) -> SocketMeter | None:
        """A meter, or None where the system has none."""
        try:
            return cls(port)
        except OSError:
            return None

    def __enter__(self) -> SocketMeter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop counting."""
        self._events.close()

    def read(self) -> SocketBytes:
        """Bytes since the connections were opened, of those open now or closed since this meter was made."""
        own = _own_inodes()
        for family in (socket.AF_INET, socket.AF_INET6):
            for seen in _dump(family):
                if seen.inode in own:
                    self._own.add(seen.cookie)
                self._count(seen)
        for seen in self._destroyed():
            self._count(seen)
        counted = [count for cookie, count in self._counts.items() if cookie not in self._own]
        return SocketBytes(sum(up for up, _ in counted), sum(down for _, down in counted), len(counted))

    def _count(self, seen: _Seen) -> None:
        if seen.port == self._port:
            up, down = self._counts.get(seen.cookie, (0, 0))
            self._counts[seen.cookie] = max(up, seen.up), max(down, seen.down)

    def _destroyed(self) -> Iterator[_Seen]:
        while True:
            try:
                yield from _parse(self._events.recv(1 << 16))
            except BlockingIOError:
                return
            except OSError:  # the queue overflowed: some closed connections are missing, later ones are not
                continue


def _dump(family: int) -> Iterator[_Seen]:
    """The TCP sockets that are open now."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as asker:
        asker.settimeout(2.0)
        body = _ASK.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _ALL_STATES)
        asker.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + body)
        while True:
            answer = asker.recv(1 << 16)
            yield from _parse(answer)
            if _last(answer):
                return


def _messages(datagram: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield ``(type, body)`` of each netlink message."""
    at = 0
    while at + _HEADER.size <= len(datagram):
        length, kind, *_ = _HEADER.unpack_from(datagram, at)
        if length < _HEADER.size:
            return
        yield kind, datagram[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _last(datagram: bytes) -> bool:
    for kind, body in _messages(datagram):
        if kind == _ERROR:
            raise OSError(-struct.unpack_from("=i", body)[0], "the kernel does not tell about TCP sockets")
        if kind == _DONE:
            return True
    return False


def _parse(datagram: bytes) -> Iterator[_Seen]:
    for kind, body in _messages(datagram):
        if kind != _SOCK_DIAG_BY_FAMILY or len(body) < _DIAG_BYTES:
            continue
        info = _attribute(body[_DIAG_BYTES:], _INFO)
        if info is None or len(info) < _BYTES_RECEIVED + 8:
            continue  # a listening or half-closed socket
        (port,) = struct.unpack_from("!H", body, 6)
        (inode,) = struct.unpack_from("=I", body, 68)
        (up,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
        (down,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
        yield _Seen(body[44:52], port, inode, up, down)


def _attribute(attributes: bytes, wanted: int) -> bytes | None:
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if length < _ATTRIBUTE.size:
            return None
        if kind == wanted:
            return attributes[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return None


def _own_inodes() -> set[int]:
    """The inodes of this process's sockets."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            target = str(entry.readlink())
        except OSError:  # closed meanwhile
            continue
        if target.startswith("socket:["):
            found.add(int(target[8:-1]))
    return found
