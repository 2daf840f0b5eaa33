"""The addresses at which other machines can reach this server."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterator, Sequence

import psutil

from ..core.address import is_loopback, join_address

#: An address of a documentation network (RFC 5737): routed like any other, and nothing is sent.
_ELSEWHERE = ("192.0.2.1", 9)


def on_all_interfaces(host: str) -> bool:
    """Whether a server that listens on ``host`` listens on every interface."""
    return host in ("0.0.0.0", "::", "")  # noqa: S104 - compared, not bound


def reachable_addresses(host: str, port: int, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the ``host:port`` pairs at which a server can be reached, the best for other machines first.

    The given names come first, then the address of the interface that has the default route, then the others; loopback
    is last, and the only one for a server that listens on loopback alone.

    Parameters
    ----------
    host : str
        Interface that the server listens on.
    port : int
    names : sequence of str
        Names of the server, as given for its certificate.
    """
    if is_loopback(host):
        return (join_address(host, port),)
    hosts = [*names, *([host] if not on_all_interfaces(host) else [*_interfaces(host), "127.0.0.1"])]
    return tuple(dict.fromkeys(join_address(each, port) for each in hosts))


def _interfaces(host: str) -> Iterator[str]:
    if default := _default_route():
        yield default
    families = {socket.AF_INET} if host == "0.0.0.0" else {socket.AF_INET, socket.AF_INET6}  # noqa: S104
    up = {name for name, state in psutil.net_if_stats().items() if state.isup}
    for name, addresses in psutil.net_if_addrs().items():
        for each in addresses if name in up else ():
            if each.family in families and not _is_local(each.address):
                yield each.address


def _default_route() -> str:
    """Return the address of the interface with the default route, or an empty string."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(_ELSEWHERE)
        except OSError:
            return ""
        found: str = probe.getsockname()[0]
    return "" if _is_local(found) else found


def _is_local(address: str) -> bool:
    """Whether other machines cannot use an address: loopback, or link-local, which needs a scope."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    return parsed.is_loopback or parsed.is_link_local or "%" in address
