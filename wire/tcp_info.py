"""Bytes of TCP connections, as counted by the kernel: including TLS and HTTP/2, without IP headers. Linux only.

The counters are read through netlink (``sock_diag``): by a dump of the open sockets, and from the message that the
kernel sends with the final counters when a socket is destroyed. No polling is necessary, and short connections are
counted too.
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
_REQUEST_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_NETLINK_SOCK_DIAG = 4
# Bit mask of the multicast groups for destroyed TCP sockets over IPv4 and IPv6.
_DESTROYED_GROUPS = 0b101
_ALL_STATES = 0xFFF
_INFO = 2
_HEADER = struct.Struct("=IHHII")
_DIAG_REQUEST = struct.Struct("=BBBBI")
_PORTS = struct.Struct("!HH")
_ATTRIBUTE = struct.Struct("=HH")
_DIAG_BYTES = 72
_BYTES_ACKED, _BYTES_RECEIVED = 120, 128


@dataclass(frozen=True, slots=True)
class AcceptedConnection:
    """A TCP connection that a process of this machine accepted.

    Attributes
    ----------
    port : int
        Local port.
    peer : str
        Address of the client, as returned by :func:`parse_peer`.
    """

    port: int
    peer: str


@dataclass(frozen=True, slots=True)
class SocketBytes:
    """Bytes of a TCP connection: ``up`` from the client, ``down`` to the client."""

    up: int
    down: int


def parse_peer(address: str) -> str:
    """Convert a gRPC peer name such as ``ipv6:%5B::1%5D:4711`` to ``host port``; IPv4-mapped addresses to IPv4."""
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
    """Counts the bytes of TCP connections; a context manager.

    Call :meth:`watch` while a connection is open; its final counters are kept when it closes. :meth:`fileno` becomes
    readable when any connection of this machine closes: call :meth:`drain` then, so that the event queue of the kernel
    does not overflow.

    Raises
    ------
    OSError
        The system does not support it; see :meth:`open`.
    """

    def __init__(self) -> None:
        self._counts: dict[AcceptedConnection, dict[bytes, SocketBytes]] = {}
        if sys.platform != "linux":
            raise OSError("byte counters of sockets are available on Linux only")
        self._events = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG)
        try:
            self._events.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
            self._events.bind((0, _DESTROYED_GROUPS))
            self._events.setblocking(False)
            list(_dump(socket.AF_INET, 1))
        except OSError:
            self._events.close()
            raise

    @classmethod
    def open(cls) -> SocketMeter | None:
        """Return a meter, or None if the system does not support it."""
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
        """Return the file descriptor of the event socket, for selectors."""
        return self._events.fileno()

    def watch(self, connection: AcceptedConnection) -> None:
        """Count this connection, and later ones from the same address and port."""
        self._counts.setdefault(connection, {})

    def drain(self) -> None:
        """Process the events of closed connections."""
        while True:
            try:
                self._count(_parse(self._events.recv(1 << 16)))
            except BlockingIOError:
                return
            except OSError:  # the queue overflowed: events were lost, but later ones will arrive
                continue

    def take(self, connections: Collection[AcceptedConnection]) -> dict[AcceptedConnection, SocketBytes]:
        """Stop watching connections and return their bytes; connections unknown to the kernel are left out.

        Sends one request per port and address family, not one per connection.
        """
        self.drain()
        for port in {connection.port for connection in connections}:
            for family in (socket.AF_INET, socket.AF_INET6):
                self._count(_dump(family, port))
        counts = {connection: list(self._counts.pop(connection, {}).values()) for connection in connections}
        return {c: SocketBytes(sum(s.up for s in n), sum(s.down for s in n)) for c, n in counts.items() if n}

    def _count(self, found: Iterator[tuple[AcceptedConnection, bytes, SocketBytes]]) -> None:
        for connection, cookie, size in found:
            if connection in self._counts:
                self._counts[connection][cookie] = size


def _dump(family: int, port: int) -> Iterator[tuple[AcceptedConnection, bytes, SocketBytes]]:
    """Yield the open connections that were accepted on ``port``."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, _NETLINK_SOCK_DIAG) as request:
        request.settimeout(2.0)
        body = _DIAG_REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _ALL_STATES)
        body += _PORTS.pack(port, 0) + bytes(44)
        request.send(_HEADER.pack(_HEADER.size + len(body), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + body)
        while True:
            reply = request.recv(1 << 16)
            yield from _parse(reply)
            if _is_last(reply):
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


def _is_last(datagram: bytes) -> bool:
    for kind, body in _messages(datagram):
        if kind == _ERROR:
            raise OSError(-struct.unpack_from("=i", body)[0], "the kernel refused to list TCP sockets")
        if kind == _DONE:
            return True
    return False


def _parse(datagram: bytes) -> Iterator[tuple[AcceptedConnection, bytes, SocketBytes]]:
    """Yield ``(connection, socket cookie, bytes)`` of each socket in a reply or event."""
    for kind, body in _messages(datagram):
        if kind != _SOCK_DIAG_BY_FAMILY or len(body) < _DIAG_BYTES:
            continue
        info = _attribute(body[_DIAG_BYTES:], _INFO)
        if info is None or len(info) < _BYTES_RECEIVED + 8:
            continue  # a listening or half-closed socket
        host = body[24:28] if body[0] == socket.AF_INET else body[24:40]
        port, peer_port = _PORTS.unpack_from(body, 4)
        (acked,) = struct.unpack_from("=Q", info, _BYTES_ACKED)
        (received,) = struct.unpack_from("=Q", info, _BYTES_RECEIVED)
        yield (
            AcceptedConnection(port, _peer(str(ip_address(host)), peer_port)),
            body[44:52],
            SocketBytes(up=received, down=acked),
        )


def _attribute(attributes: bytes, number: int) -> bytes | None:
    at = 0
    while at + _ATTRIBUTE.size <= len(attributes):
        length, kind = _ATTRIBUTE.unpack_from(attributes, at)
        if length < _ATTRIBUTE.size:
            return None
        if kind == number:
            return attributes[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return None
