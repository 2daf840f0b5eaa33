"""Socket bytes: what TCP carried on a connection, as the kernel counts it; TLS and HTTP/2 included, IP headers not.

Linux tells it by netlink (``sock_diag``): a dump of the sockets that are open, and a message with the last figures when
one is destroyed. So nothing is polled and no short connection is missed. Elsewhere there is no meter.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from types import TracebackType
from urllib.parse import unquote

_SOCK_DIAG_BY_FAMILY = 20
_DONE, _ERROR = 3, 2
_REQUEST_DUMP = 0x301
_NETLINK_SOCK_DIAG = 4
# Groups of destroyed TCP sockets over IPv4 and IPv6, as a bit mask.
_DESTROYED = 0b101
_ALL_STATES = 0xFFF
_INFO = 2
_HEADER = struct.Struct("=IHHII")
_ASK = struct.Struct("=BBBBI")
_PORTS = struct.Struct("!HH")
_ATTRIBUTE = struct.Struct("=HH")
_DIAG_BYTES = 72
_BYTES_ACKED, _BYTES_RECEIVED = 120, 128


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection that some process of this machine accepted.

    Attributes
    ----------
    port : int
        Where it was accepted.
    peer : str
        Whoever dialled, as :func:`peer_of` writes it.
    """

    port: int
    peer: str


@dataclass(frozen=True, slots=True)
class SocketBytes:
    """Bytes of a TCP stream: ``up`` from whoever dialled, ``down`` to it."""

    up: int
    down: int


def peer_of(address: str) -> str:
    """gRPC's name of a peer, such as ``ipv6:%5B::1%5D:4711``, as ``host port``; mapped IPv4 as IPv4."""
    host, _, port = unquote(address).partition(":")[2].rpartition(":")
    return _peer(host.strip("[]"), int(port))


def _peer(host: str, port: int) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return f"{host} {port}"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return f"{mapped or address} {port}"


class SocketMeter:
    """Tells what connections carried; a context manager.

    Watch a connection while it is open; its last figures are kept when it closes. :meth:`fileno` is readable when some
    connection of this machine has closed: call :meth:`drain` then, or many closes in a row may be lost.

    Raises
    ------
    OSError
        The system has no such meter; see :meth:`open`.
    """

    def __init__(self) -> None:
        self._counts: dict[Accepted, dict[bytes, SocketBytes]] = {}
        if sys.platform != "linux":
            raise OSError("only Linux counts the bytes of sockets")
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
        try:
            self._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            self._events.bind((0, _DESTROYED))
            self._events.setblocking(False)
            list(_dump(socket.AF_INET, 1))
        except OSError:
            self._events.close()
            raise

    @classmethod
    def open(cls) -> SocketMeter | None:
        """A meter, or None where the system has none."""
        try:
            return cls()
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

    def fileno(self) -> int:
        """For a selector."""
        return self._events.fileno()

    def watch(self, connection: Accepted) -> None:
        """Keep the figures of this connection, and of those after it from the same address."""
        self._counts.setdefault(connection, {})

    def drain(self) -> None:
        """Take in which connections have closed."""
        while True:
            try:
                self._count(_parse(self._events.recv(1 << 16)))
            except BlockingIOError:
                return
            except OSError:  # the queue overflowed: some closed connections are missing, later ones are not
                continue

    def take(self, connections: Collection[Accepted]) -> dict[Accepted, SocketBytes]:
        """Bytes of watched connections until now, which ends the watch; without those that the kernel does not know.

        The kernel is asked once per port, not once per connection.
        """
        self.drain()
        for port in {connection.port for connection in connections}:
            for family in (socket.AF_INET, socket.AF_INET6):
                self._count(_dump(family, port))
        counts = {connection: list(self._counts.pop(connection, {}).values()) for connection in connections}
        return {c: SocketBytes(sum(s.up for s in n), sum(s.down for s in n)) for c, n in counts.items() if n}

    def _count(self, found: Iterator[tuple[Accepted, bytes, SocketBytes]]) -> None:
        for connection, cookie, size in found:
            if connection in self._counts:
                self._counts[connection][cookie] = size


def _dump(family: int, port: int) -> Iterator[tuple[Accepted, bytes, SocketBytes]]:
    """The connections that were accepted on a port and are open."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as asker:
        asker.settimeout(2.0)
        body = _ASK.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _ALL_STATES)
        body += _PORTS.pack(port, 0) + bytes(44)
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


def _parse(datagram: bytes) -> Iterator[tuple[Accepted, bytes, SocketBytes]]:
    """Yield ``(connection, the kernel's name of its socket, bytes)`` of the accepting side's sockets."""
    for kind, body in _messages(datagram):
        if kind != _SOCK_DIAG_BY_FAMILY or len(body) < _DIAG_BYTES:
            continue
        info = _attribute(body[_DIAG_BYTES:], _INFO)
        if info is None or len(info) < _BYTES_RECEIVED + 8:
            continue  # a listening or half-closed socket
        host = body[24:28] if body[0] == socket.AF_INET else body[24:40]
        port, far = _PORTS.unpack_from(body, 4)
        (acked,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
        (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
        yield Accepted(port, _peer(str(ip_address(host)), far)), body[44:52], SocketBytes(up=received, down=acked)


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
