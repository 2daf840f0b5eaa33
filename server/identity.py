"""A server's identity: home directory, certificate and admin tokens, created at first start."""

from __future__ import annotations

import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ConfigError, RefusedError, StorageError
from ..core.files import private_folder, write_file
from ..core.home_lock import HomeLock
from .certificates import CertificateAndKey, check_pair, fingerprint, self_signed
from .options import ServeOptions

_PLAIN = re.compile(r"[A-Za-z0-9._~+/=-]+")
_CURE = "restore it from a backup; if it is deleted,"


@dataclass(frozen=True, slots=True)
class Identity:
    """A server's identity.

    Attributes
    ----------
    home : Path
    server_id : str
        Random, created at first start; nodes receive it in the join reply.
    pair : CertificateAndKey or None
        Certificate and key; None when insecure.
    fingerprint : str
        SHA-256 of the certificate in DER form, hex; empty when insecure.
    admin_token : str
        Authenticates submitters; may be copied to other machines.
    operator_token : str
        Authenticates the operator, who can read the home on this machine.
    lock : HomeLock
        Held until :meth:`release`, or until the process ends.
    """

    home: Path
    server_id: str
    pair: CertificateAndKey | None
    fingerprint: str
    admin_token: str
    operator_token: str
    lock: HomeLock

    @property
    def admin_token_file(self) -> Path:
        return self.home / "admin.token"

    @property
    def certificate_file(self) -> Path | None:
        return self.home / "certificate.pem" if self.pair else None

    def release(self) -> None:
        """Release the lock of the home."""
        self.lock.release()

    def is_admin(self, token: str) -> bool:
        """Return whether ``token`` is the admin or the operator token, in constant time."""
        return hmac.compare_digest(token.encode(), self.admin_token.encode()) or self.is_operator(token)

    def is_operator(self, token: str) -> bool:
        """Return whether ``token`` is the operator token, in constant time."""
        return hmac.compare_digest(token.encode(), self.operator_token.encode())


def open_identity(options: ServeOptions) -> Identity:
    """Read the identity in ``options.home`` and create what is missing.

    Raises
    ------
    StorageError
        The home cannot be read or written.
    RefusedError
        Another server uses the home.
    ConfigError
        A given certificate or key cannot be read, or only one of the two is given.
    """
    home = private_folder(options.home)
    # A second server would treat the runs of the first as interrupted.
    lock = HomeLock(home, RefusedError("another server is running", hint="stop it, or choose another --home"))
    try:
        server_id = _read_or_create(home / "server.id", lambda: secrets.token_hex(8))
        admin_token, operator_token = (
            _read_or_create(home / name, lambda: secrets.token_urlsafe(32))
            for name in ("admin.token", "operator.token")
        )
        if options.insecure:
            (home / "certificate.pem").unlink(missing_ok=True)
        pair = None if options.insecure else _pair(options)
        digest = fingerprint(pair.certificate) if pair else ""
        return Identity(home, server_id, pair, digest, admin_token, operator_token, lock)
    except BaseException:
        lock.release()
        raise


def _pair(options: ServeOptions) -> CertificateAndKey:
    home = options.home
    if (options.certificate is None) != (options.key is None):
        raise ConfigError(
            "certificate and key must be given together", hint="give both --certificate and --key, or neither"
        )
    if options.certificate and options.key:
        try:
            pair = CertificateAndKey(options.certificate.read_bytes(), options.key.read_bytes())
        except OSError as error:
            raise ConfigError(f"cannot read {error.filename}: {error.strerror}") from error
        check_pair(pair, options.certificate, options.key)
        write_file(home / "certificate.pem", pair.certificate, mode=0o644)
        return pair
    certificate, key = home / "self_signed.pem", home / "self_signed.key"
    try:
        pair = CertificateAndKey(certificate.read_bytes(), key.read_bytes())
    except FileNotFoundError:
        pair = self_signed(options.hostnames)
        write_file(key, pair.key)
        write_file(certificate, pair.certificate, mode=0o644)
    except OSError as error:
        raise StorageError(f"cannot read {error.filename}: {error.strerror}") from error
    try:
        check_pair(pair, certificate, key)
    except ConfigError as error:
        hint = f"{_CURE} a new certificate is made; nodes then have to join again"
        raise StorageError(f"{error.message}: it is damaged", hint=hint) from error
    # Submitters on this machine always use this file as root certificate.
    write_file(home / "certificate.pem", pair.certificate, mode=0o644)
    return pair


def _read_or_create(path: Path, create: Callable[[], str]) -> str:
    try:
        if text := path.read_text().strip():
            if not _PLAIN.fullmatch(text):
                raise StorageError(f"{path} is damaged", hint=f"{_CURE} a new one is made")
            return text
    except FileNotFoundError:
        pass
    except UnicodeDecodeError as error:
        raise StorageError(f"{path} is damaged: not a text", hint=f"{_CURE} a new one is made") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    text = create()
    write_file(path, text.encode() + b"\n")
    return text
