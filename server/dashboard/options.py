"""Options of the dashboard, its sign-in token and its TLS files."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...core.address import is_loopback
from ...core.errors import ConfigError, RefusedError, StorageError
from ...core.files import write_file

TOKEN_FILE = "dashboard.token"  # noqa: S105 – a file name


@dataclass(frozen=True, slots=True)
class DashboardOptions:
    """Options of the dashboard.

    Attributes
    ----------
    home : Path
        Home directory of the server to show.
    host : str
        Interface to listen on; other interfaces than loopback require TLS and sign-in.
    port : int
        0: any free port.
    login : bool
        Whether to require sign-in on loopback too.
    hostnames : tuple of str
        Additional host names accepted in requests.
    store_url : str or None
        SQLAlchemy URL of the run store; None: SQLite in ``home``.
    certificate, key : Path or None
        PEM files; None: the server's self-signed certificate.
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
        """Whether sign-in with the token is required."""
        return self.login or not is_loopback(self.host)

    def token(self) -> str:
        """Return the sign-in token, created in ``home`` on first use; empty if no sign-in is required.

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
                f"cannot read {path}: {error}", hint="remove the file; a new token will be created"
            ) from error
        text = secrets.token_urlsafe(32)
        write_file(path, text.encode() + b"\n")
        return text

    def tls_files(self) -> tuple[Path, Path] | None:
        """Return certificate and key for TLS; None on loopback unless they are given.

        Raises
        ------
        ConfigError
            Only one of the two is given.
        RefusedError
            There is no certificate, and the host is not loopback.
        """
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("a certificate needs its key", hint="give both --certificate and --key, or neither")
        if self.certificate and self.key:
            return self.certificate, self.key
        if is_loopback(self.host):
            return None
        self_signed = self.home / "self_signed.pem", self.home / "self_signed.key"
        if not all(path.is_file() for path in self_signed):
            raise RefusedError(
                f"the dashboard cannot listen on {self.host} without TLS",
                hint="give --certificate and --key, or use --host 127.0.0.1",
            )
        return self_signed

    def as_dict(self) -> dict[str, Any]:
        """Return a JSON-serializable dict."""
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
    def from_dict(cls, values: dict[str, Any]) -> DashboardOptions:
        """Restore from the dict of :meth:`as_dict`."""
        paths = {name: Path(values[name]) if values[name] else None for name in ("certificate", "key")}
        return cls(**{**values, **paths, "home": Path(values["home"]), "hostnames": tuple(values["hostnames"])})
