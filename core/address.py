"""Parsing and formatting of ``host:port`` addresses, and detection of loopback hosts."""

from __future__ import annotations

import ipaddress
import os
import re
import sys

from .errors import ConfigError

_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?")
_NUMERIC = re.compile(r"[0-9.]+")
_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_LOOPBACK = {"linux": "lo", "darwin": "lo0"}


def parse_address(text: str) -> tuple[str, int]:
    """Split ``host:port`` into host and port; IPv6 addresses are in brackets.

    Raises
    ------
    ConfigError
        It is not of this form: the port is missing or not in 1 to 65535, an IPv6 address has no brackets, or there is
        a scheme, a path or a space.
    """
    if not _parses(text):
        raise ConfigError(f"'{text[:200]}' is not an address", hint=_suggestion(text))
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        return _is_ip(host[1:-1].partition("%")[0], 6)
    if _NUMERIC.fullmatch(host):
        return _is_ip(host, 4)
    return bool(_HOST.fullmatch(host)) and len(host) <= 253


def _is_ip(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _suggestion(text: str) -> str:
    """Return how ``text`` was probably meant."""
    bare = _SCHEME.sub("", text.strip()).partition("/")[0]
    host, _, port = bare.rpartition(":")
    for meant in (bare, f"[{host}]:{port}", f"{bare}:50051", f"[{bare}]:50051"):
        if meant != text and _parses(meant):
            return f"write {meant}"
    return "write host:port, e.g. 192.0.2.7:50051 or [::1]:50051"


def _parses(text: str) -> bool:
    host, _, port = text.rpartition(":")
    return _is_host(host) and port.isascii() and port.isdecimal() and 0 < int(port) < 65536


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
