"""What an operator can choose about a dashboard."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.address import is_loopback
from ...core.errors import ConfigError, RefusedError, StorageError
from ...core.files import write_file

TOKEN_FILE = "dashboard.token"  # noqa: S105 – a file's name


@dataclass(frozen=True, slots=True)
class DashboardOptions:
    """How to show a server.

    Attributes
    ----------
    home : Path
        The server's home.
    host : str
        Interface to listen on; off loopback it is TLS, and whoever looks has to sign in.
    port : int
        0 = any free one.
    login : bool
        Whether one has to sign in on loopback too.
    hostnames : tuple of str
        Further names under which browsers may ask for it.
    store_url : str or None
        SQLAlchemy URL of the run store; None = SQLite in ``home``.
    certificate, key : Path or None
        PEM files; None = those that the server made itself.
    """

    home: Path
    host: str = "127.0.0.1"
    port: int = 0
    login: bool = False
    hostnames: tuple[str, ...] = ()
    store_url: str | None = None
    certificate: Path | None = None
    key: Path | None = None

    @property
    def needs_login(self) -> bool:
        """Whether a token is asked for."""
        return self.login or not is_loopback(self.host)

    def token(self) -> str:
        """What has to be shown to sign in; made, in the home, when it is first needed. Empty where none is.

        Raises
        ------
        StorageError
            The file cannot be read or written.
        """
        if not self.needs_login:
            return ""
        path = self.home / TOKEN_FILE
        try:
            if path.exists() and (text := path.read_text().strip()):
                return text
        except (OSError, UnicodeDecodeError) as error:
            raise StorageError(
                f"cannot read {path}: {error}", hint="remove the file; a new one will be made"
            ) from error
        text = secrets.token_urlsafe(32)
        write_file(path, text.encode() + b"\n")
        return text

    def pair(self) -> tuple[Path, Path] | None:
        """Certificate and key to listen with; None on loopback unless they are given.

        Raises
        ------
        ConfigError
            Only one of the two is given.
        RefusedError
            There is none, and the host is not loopback.
        """
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a certificate needs its key", hint="give both --certificate and --key, or neither")
        if self.certificate and self.key:
            return self.certificate, self.key
        if is_loopback(self.host):
            return None
        own = self.home / "self_signed.pem", self.home / "self_signed.key"
        if not all(path.is_file() for path in own):
            raise RefusedError(
                f"will not show anything on {self.host} without TLS",
                hint="give --certificate and --key, or use --host 127.0.0.1",
            )
        return own

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "home": str(self.home),
            "host": self.host,
            "port": self.port,
            "login": self.login,
            "hostnames": list(self.hostnames),
            "store_url": self.store_url,
            "certificate": str(self.certificate) if self.certificate else None,
            "key": str(self.key) if self.key else None,
        }

    @classmethod
    def of(cls, told: dict[str, Any]) -> DashboardOptions:
        """What :meth:`as_dict` told."""
        paths = {name: Path(told[name]) if told[name] else None for name in ("certificate", "key")}
        return cls(**{**told, **paths, "home": Path(told["home"]), "hostnames": tuple(told["hostnames"])})
