"""Join tokens and node keys: stored as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import NotFoundError, RefusedError, StorageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS tokens (id TEXT PRIMARY KEY, hash BLOB NOT NULL, created REAL NOT NULL,
    expires REAL NOT NULL, uses_left INTEGER NOT NULL, revoked INTEGER NOT NULL DEFAULT 0);
CREATE TABLE IF NOT EXISTS nodes (name TEXT PRIMARY KEY, hash BLOB NOT NULL, joined REAL NOT NULL,
    revoked REAL NOT NULL DEFAULT 0);
"""
_UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A token as it is shown, once: ``fs1.<id>.<secret>.<fingerprint>``; the last is empty without TLS."""

    id: str
    secret: str
    fingerprint: str
    expires: float

    def __str__(self) -> str:
        return f"fs1.{self.id}.{self.secret}.{self.fingerprint}"


class RevokedError(RefusedError):
    """The node's key was revoked; the node must not try again by itself."""


def check_name(name: str) -> str:
    """Return ``name`` if a node may be called so.

    Raises
    ------
    RefusedError
        It has other characters, or is empty or too long.
    """
    if not _NAME.fullmatch(name):
        raise RefusedError(
            f"'{name[:80]!s}' is no name for a node".replace("\n", " "),
            cure="use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
        )
    return name


class Credentials:
    """The tokens and keys of one server, in a small SQLite file (mode 0600).

    Parameters
    ----------
    path : Path
    fingerprint : str
        Certificate's fingerprint that tokens carry.
    clock : callable
        Seconds since 1970; for tests.
    """

    def __init__(self, path: Path, fingerprint: str, clock: Callable[[], float] = time.time) -> None:
        self._fingerprint = fingerprint
        self._clock = clock
        try:
            path.touch(mode=0o600, exist_ok=True)
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;" + _SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"cannot use the credentials file {path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # ---- tokens ------------------------------------------------------------------------------------------------

    def create_token(self, valid_seconds: float, uses: int = 0) -> JoinToken:
        """Make a join token; ``uses=0`` allows any number of joins until it expires."""
        now = self._clock()
        token = JoinToken(secrets.token_hex(4), secrets.token_urlsafe(24), self._fingerprint, now + valid_seconds)
        row = (token.id, _hash(token.secret), now, token.expires, uses or _UNLIMITED)
        with self._transaction():
            self._db.execute("INSERT INTO tokens (id, hash, created, expires, uses_left) VALUES (?, ?, ?, ?, ?)", row)
        return token

    def ever_used(self) -> bool:
        """Whether any token was ever made; False at a server's first start."""
        return self._db.execute("SELECT 1 FROM tokens LIMIT 1").fetchone() is not None

    def revoke_token(self, token_id: str) -> None:
        """Make a token useless; nodes that joined with it keep their keys.

        Raises
        ------
        NotFoundError
            No token has that id.
        """
        with self._transaction():
            if not self._db.execute("UPDATE tokens SET revoked = 1 WHERE id = ?", (token_id,)).rowcount:
                raise NotFoundError(f"no join token has the id '{token_id[:40]}'")

    # ---- nodes -------------------------------------------------------------------------------------------------

    def join(self, token: str, name: str) -> str:
        """Trade ``<id>.<secret>`` for a node key; checking and using up happen in one transaction.

        Raises
        ------
        RefusedError
            The token is wrong, expired, revoked or used up, or the name is invalid or taken.
        """
        check_name(name)
        token_id, _, secret = token.partition(".")
        with self._transaction():
            created = self._check_token(token_id, secret)
            row = self._db.execute("SELECT revoked FROM nodes WHERE name = ?", (name,)).fetchone()
            if row is not None and not row[0]:
                raise RefusedError(
                    f"the name '{name}' belongs to another node",
                    cure="choose another name, or revoke that node first",
                )
            if row is not None and created <= row[0]:
                raise RevokedError(
                    f"the node '{name}' was revoked after this token was made", cure="ask for a new token"
                )
            self._db.execute("UPDATE tokens SET uses_left = uses_left - 1 WHERE id = ? AND uses_left > 0", (token_id,))
            key = secrets.token_urlsafe(32)
            row = (name, _hash(key), self._clock())
            self._db.execute("INSERT OR REPLACE INTO nodes (name, hash, joined, revoked) VALUES (?, ?, ?, 0)", row)
        return f"{name}:{key}"

    def node_of(self, key: str) -> str:
        """Name of the node that ``key`` belongs to.

        Raises
        ------
        RefusedError
            Unknown or revoked.
        """
        name, _, secret = key.partition(":")
        row = self._db.execute("SELECT hash, revoked FROM nodes WHERE name = ?", (name,)).fetchone()
        known = hmac.compare_digest(row[0] if row else bytes(32), _hash(secret))
        if not row or not known:
            raise RefusedError("the node key is not known here", cure="join again with a token")
        if row[1]:
            raise RevokedError(f"the node '{name}' was revoked", cure="ask the server's operator for a new token")
        return name

    def revoke_node(self, name: str) -> None:
        """Make a node's key useless; its name is free again.

        Raises
        ------
        NotFoundError
            No node has that name.
        """
        with self._transaction():
            if not self._db.execute("UPDATE nodes SET revoked = ? WHERE name = ?", (self._clock(), name)).rowcount:
                raise NotFoundError(f"no node is called '{name[:64]}'")

    def nodes(self) -> dict[str, bool]:
        """Every node that ever joined, by name; True = revoked."""
        return {n: bool(r) for n, r in self._db.execute("SELECT name, revoked FROM nodes ORDER BY name")}

    def _check_token(self, token_id: str, secret: str) -> float:
        """Refuse a token that does not open anything; returns when it was made."""
        row = self._db.execute(
            "SELECT hash, expires, uses_left, revoked, created FROM tokens WHERE id = ?", (token_id,)
        ).fetchone()
        right = hmac.compare_digest(row[0] if row else bytes(32), _hash(secret))
        cure = "ask the server's operator for a new one"
        if not row or not right:
            raise RefusedError("the join token is not known here", cure="check that it was copied whole")
        if row[3]:
            raise RefusedError("the join token was revoked", cure=cure)
        if row[1] <= self._clock():
            raise RefusedError("the join token has expired", cure=cure)
        if row[2] == 0:
            raise RefusedError("the join token is used up", cure=cure)
        return float(row[4])

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            self._rollback()
            raise StorageError(f"cannot write the credentials file: {error}") from error
        except BaseException:
            self._rollback()
            raise

    def _rollback(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")


def _hash(secret: str) -> bytes:
    # Secrets are random and long, so one round of SHA-256 is as good as a slow hash.
    return hashlib.sha256(secret.encode()).digest()
