"""Parsing and formatting of ``host:port`` addresses, and detection of loopback hosts."""

from __future__ import annotations

import ipaddress
import os
import sys

from .errors import ConfigError

_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` into host and port; IPv6 addresses are in brackets.

    Raises
    ------
    ConfigError
        The port is missing or not in 1 to 65535.
    """
    host, colon, port = text.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"'{text}' is not an address", hint="write host:port, e.g. 192.0.2.7:50051 or [::1]:50051")
    return host.removeprefix("[").removesuffix("]"), int(port)


def join_address(host: str, port: int) -> str:
    """Format ``host:port``, with brackets around IPv6 addresses."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def proxy_options(address: str) -> list[tuple[str, int]]:
    """Return gRPC's channel options on proxies for a server at ``host:port``.

    gRPC would send everything to the proxy of ``http_proxy`` or ``https_proxy``, loopback included, and few proxies
    pass HTTP/2 on. Only ``grpc_proxy``, which is meant for it, counts, and never for loopback.
    """
    host = address.rpartition(":")[0].removeprefix("[").removesuffix("]")
    use = bool(os.environ.get("grpc_proxy")) and not is_loopback(host)  # noqa: SIM112 - as gRPC spells it
    return [("grpc.enable_http_proxy", int(use))]


def loopback_interface(host: str) -> str:
    """Return the name of the loopback interface if ``host`` is a loopback address, else an empty string."""
    return _LOOPBACK.get(sys.platform, "") if is_loopback(host.removeprefix("[").removesuffix("]")) else ""


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a loopback address or ``localhost``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
