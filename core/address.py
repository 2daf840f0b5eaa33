"""``host:port`` as people write it."""

from __future__ import annotations

import ipaddress
import sys

from .errors import ConfigError

_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port``; an IPv6 address stands in brackets.

    Raises
    ------
    ConfigError
        There is no port, or no number that a port can be.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"'{text}' is not an address", hint="write host:port, e.g. 192.0.2.7:50051 or [::1]:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """``host:port``, with brackets where the host is an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def loopback_interface(host: str) -> str:
    """The network interface that reaches ``host`` if it is this machine and nothing else; else empty."""
    return _LOOPBACK.get(sys.platform, "") if is_loopback(host.removeprefix("[").removesuffix("]")) else ""


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only ever mean this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
