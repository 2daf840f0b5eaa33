"""Closes connections of strangers, so that they cannot use up the descriptors of a server.

gRPC accepts every TCP connection and has no limit on those that make no call. This guard looks at the process's sockets
once a second: a connection that has made no valid call within some seconds is shut down, and so are the oldest such
connections of one address beyond a number, and of all addresses when descriptors run short.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from ..core.descriptors import RESERVE, DescriptorLimit, open_descriptors
from ..wire.tcp_info import parse_peer

_INTERVAL, _BUSY_INTERVAL = 1.0, 0.25


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """Limits on connections that have made no valid call.

    Attributes
    ----------
    seconds : float
        Time to authenticate.
    per_address : int
        Connections of one address.
    reserve : int
        Descriptors to keep free.
    """

    seconds: float = 15.0
    per_address: int = 64
    reserve: int = RESERVE


@dataclass(slots=True)
class _Stranger:
    descriptor: int
    inode: int
    peer: str
    since: float


class ConnectionGuard:
    """Watches the accepted connections of one port in a thread; a context manager.

    Parameters
    ----------
    port : int
    limits : GuardLimits, optional
    clock : callable
        Returns monotonic seconds; replaceable in tests.
    """

    def __init__(
        self, port: int, limits: GuardLimits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._port, self._limits, self._clock = port, limits or GuardLimits(), clock
        self._known: dict[int, tuple[int, str]] = {}  # descriptor -> inode, and peer of a connection of the port
        self._since: dict[str, float] = {}
        self._valid: dict[str, float] = {}  # peer -> time of its last valid call
        self._used = 0
        self._null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        self._slot = os.dup(self._null)  # sockets are examined here: that needs no free descriptor
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="connection guard", daemon=True)

    def __enter__(self) -> ConnectionGuard:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        os.close(self._slot)
        os.close(self._null)

    def authenticated(self, peer: str) -> None:
        """Note that a connection has made a valid call; ``peer`` is gRPC's name of it. Thread-safe."""
        with suppress(ValueError):
            self._valid[parse_peer(peer)] = self._clock()

    @property
    def short(self) -> bool:
        """Whether so few descriptors were free at the last look that only operators may connect."""
        return DescriptorLimit.current().soft - self._used < self._limits.reserve // 2

    def sweep(self) -> int:
        """Look at all connections once; returns how many were shut down."""
        now = self._clock()
        strangers = self._strangers(now)
        late = [s for s in strangers if now - s.since > self._limits.seconds]
        rest = [s for s in strangers if now - s.since <= self._limits.seconds]
        counts = Counter(s.peer.rpartition(" ")[0] for s in rest)
        closed = sum(map(self._shut_down, late))
        missing = self._limits.reserve - (DescriptorLimit.current().soft - self._used + closed)
        for stranger in rest:  # oldest first: an operator's call on a new connection is answered in time
            address = stranger.peer.rpartition(" ")[0]
            if counts[address] > self._limits.per_address or missing > 0:
                counts[address] -= 1
                missing -= 1
                closed += self._shut_down(stranger)
        return closed

    def _watch(self) -> None:
        busy = False
        while not self._ending.wait(_BUSY_INTERVAL if busy else _INTERVAL):
            busy = self.sweep() > 0 or len(self._since) - len(self._valid) > self._limits.per_address

    def _strangers(self, now: float) -> list[_Stranger]:
        """Return the connections without a valid call, oldest first."""
        known: dict[int, tuple[int, str]] = {}
        for descriptor in open_descriptors():
            try:
                found = os.fstat(descriptor)
            except OSError:
                continue
            before = self._known.get(descriptor)
            if before is not None and before[0] == found.st_ino:
                known[descriptor] = before
            else:
                peer = self._peer(descriptor, found.st_ino) if stat.S_ISSOCK(found.st_mode) else ""
                known[descriptor] = found.st_ino, peer
        self._known, self._used = known, len(known)
        peers = {peer: (descriptor, inode) for descriptor, (inode, peer) in known.items() if peer}
        self._since = {peer: self._since.get(peer, now) for peer in peers}
        for peer, called in list(self._valid.items()):
            if peer not in peers and now - called > self._limits.seconds:  # a later connection may have its port
                self._valid.pop(peer, None)
        strangers = [_Stranger(*peers[p], p, since) for p, since in self._since.items() if p not in self._valid]
        return sorted(strangers, key=lambda s: s.since)

    def _peer(self, descriptor: int, inode: int) -> str:
        """Return the peer of a connection that was accepted on the port, else an empty string."""
        return self._examine(descriptor, inode, lambda connection: _accepted_from(connection, self._port)) or ""

    def _shut_down(self, stranger: _Stranger) -> bool:
        def shut_down(connection: socket.socket) -> str:
            if _accepted_from(connection, self._port) != stranger.peer:
                return ""
            connection.shutdown(socket.SHUT_RDWR)  # gRPC sees the end of the connection and closes it
            return stranger.peer

        self._known[stranger.descriptor] = stranger.inode, ""  # until gRPC has closed it
        return bool(self._examine(stranger.descriptor, stranger.inode, shut_down))

    def _examine(self, descriptor: int, inode: int, action: Callable[[socket.socket], str]) -> str:
        """Apply an action to a socket of another owner, through a descriptor of our own."""
        try:
            os.dup2(descriptor, self._slot, inheritable=False)
            if os.fstat(self._slot).st_ino != inode:
                return ""
            connection = socket.socket(fileno=self._slot)
            try:
                return action(connection)
            finally:
                connection.detach()
        except OSError:
            return ""
        finally:
            os.dup2(self._null, self._slot, inheritable=False)


def _accepted_from(connection: socket.socket, port: int) -> str:
    if connection.family not in (socket.AF_INET, socket.AF_INET6) or connection.getsockname()[1] != port:
        return ""
    host, remote_port = connection.getpeername()[:2]  # OSError: the listening socket has no peer
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return f"{mapped or address} {remote_port}"
