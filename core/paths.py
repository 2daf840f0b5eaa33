"""Where a server and a node keep what they know: the few file names that more than one room reads."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .errors import NotFoundError, StorageError


def base() -> Path:
    """The folder of all homes: ``$FARSHORE_HOME``, else ``~/.farshore``."""
    given = os.environ.get("FARSHORE_HOME")
    return Path(given).expanduser() if given else Path.home() / ".farshore"


def server_home() -> Path:
    """The default home of a server."""
    return base() / "server"


def node_home(name: str) -> Path:
    """The default home of the node called ``name``."""
    return base() / "nodes" / name


@dataclass(frozen=True, slots=True)
class LocalServer:
    """What a submitter on the server's own machine needs, read from the server's home.

    Attributes
    ----------
    address : str
        ``host:port`` to dial.
    certificate : bytes or None
        PEM root to verify the server with; None when it runs without TLS (loopback only).
    token : str
        The operator's where the home has one, else what submitters show.
    """

    address: str
    certificate: bytes | None
    token: str

    @classmethod
    def read(cls, home: Path) -> LocalServer:
        """Read the home of a server.

        Raises
        ------
        NotFoundError
            No server runs with that home.
        StorageError
            Its files cannot be read or are damaged.
        """
        try:
            address = (home / "address").read_text().strip()
            operators = home / "operator.token"
            token = (operators if operators.exists() else home / "admin.token").read_text().strip()
            certificate = home / "certificate.pem"
            return cls(address, certificate.read_bytes() if certificate.exists() else None, token)
        except FileNotFoundError as error:
            raise NotFoundError(
                f"no server runs with the home {home}",
                hint="start one with 'farshore server up', or name one with --home or --server",
            ) from error
        except OSError as error:
            raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise StorageError(f"a file in {home} is damaged", hint="start the server again") from error
