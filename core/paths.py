"""Home directories of servers and nodes, and access to a server on the same machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .address import parse_address
from .errors import ConfigError, NotFoundError, StorageError


def farshore_home() -> Path:
    """Return the parent directory of all homes: ``$FARSHORE_HOME``, else ``~/.farshore``."""
    given = os.environ.get("FARSHORE_HOME")
    return Path(given).expanduser() if given else Path.home() / ".farshore"


def server_home() -> Path:
    """Return the default home directory of a server."""
    return farshore_home() / "server"


def node_home(name: str) -> Path:
    """Return the default home directory of the node called ``name``."""
    return farshore_home() / "nodes" / name


@dataclass(frozen=True, slots=True)
class LocalServer:
    """Connection data of a server on the same machine, read from its home directory.

    Attributes
    ----------
    address : str
        ``host:port`` to connect to.
    certificate : bytes or None
        PEM root certificate to verify the server with; None if it runs without TLS (loopback only).
    token : str
        The operator token if the home has one, else the admin token.
    """

    address: str
    certificate: bytes | None
    token: str

    @classmethod
    def read(cls, home: Path) -> LocalServer:
        """Read the connection data from the home directory of a server.

        Raises
        ------
        NotFoundError
            No server is running with that home directory.
        StorageError
            Its files cannot be read or are damaged.
        """
        try:
            address = _text(home / "address")
            _check_address(home / "address", address)
            operator = home / "operator.token"
            token = _text(operator if operator.exists() else home / "admin.token")
            certificate = home / "certificate.pem"
            return cls(address, certificate.read_bytes() if certificate.exists() else None, token)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"no server is running with the home directory {home}",
                hint="start one with 'farshore server up', or select one with --home or --server",
            ) from error
        except OSError as error:
            raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error


def _text(path: Path) -> str:
    text = path.read_bytes().strip()
    if not (text.isascii() and text.decode("ascii").isprintable() and text and b" " not in text):
        raise StorageError(f"{path} is damaged", hint="restart the server")
    return text.decode("ascii")


def _check_address(path: Path, text: str) -> None:
    try:
        parse_address(text)
    except ConfigError as error:
        raise StorageError(f"{path} is damaged: {error.message}", hint="restart the server") from error
