"""Rolling secrets of nodes: each connection replaces the secret, so that a copied node key is noticed.

A key that was copied is as good as the original. What the copy cannot have is the secret that the original receives at
its next connection, or the other way round: whichever comes second presents an old one. ``docs/security.md`` has the
protocol and what happens when a node or the server dies at any point of it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from ..core.errors import RefusedError
from ..runs.store import RunStore, SecretRow


class StaleSecretError(RefusedError):
    """The node's secret is not the newest one: another machine has used its key since."""


class ContestedError(RefusedError):
    """The node's key was used in two places; an operator has to decide."""


class RollingSecrets:
    """The secrets of one server's nodes, kept in its run store. Thread-safe: writes wait for the disk.

    Parameters
    ----------
    store : RunStore
    clock : callable
        Returns seconds since 1970; replaceable in tests.
    """

    def __init__(self, store: RunStore, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._clock = clock
        self._lock = threading.Lock()
        self._rows = {row.name: row for row in store.secrets()}

    def create(self, name: str, attempt: str = "") -> str:
        """Create the first secret of a node that joins; earlier ones and a contest of its name are forgotten."""
        secret = secrets.token_urlsafe(32)
        with self._lock:
            self._save(SecretRow(name, _hash(secret), attempt=_hash(attempt) if attempt else b""))
        return secret

    def is_repeat(self, name: str, attempt: str) -> bool:
        """Whether a join with this text has made the node's key, and that key was never used."""
        row = self._rows.get(name)
        if row is None or not row.attempt or not attempt:
            return False
        return hmac.compare_digest(row.attempt, _hash(attempt))

    def is_valid(self, name: str, presented: Sequence[str]) -> bool:
        """Whether one of the secrets that a node presents is the newest or the one that it was sent last."""
        row = self._rows.get(name)
        if row is None or not row.current:
            return True  # joined before there were secrets
        known = [digest for digest in (row.current, row.next) if digest]
        return any(hmac.compare_digest(_hash(secret), digest) for secret in presented if secret for digest in known)

    def offer(self, name: str, presented: Sequence[str]) -> str:
        """Return the next secret of a node; the present one stays valid until :meth:`confirm`.

        Raises
        ------
        StaleSecretError
            None of the ``presented`` secrets is valid.
        """
        following = secrets.token_urlsafe(32)
        with self._lock:
            if not self.is_valid(name, presented):
                raise StaleSecretError(f"the secret of the node '{name}' is not the newest one")
            row = self._rows.get(name, SecretRow(name, b""))
            stored = any(row.next and _hash(secret) == row.next for secret in presented)
            self._save(replace(row, current=row.next if stored else row.current, next=_hash(following)))
        return following

    def confirm(self, name: str, secret: str) -> None:
        """Make ``secret`` the only valid one of a node, which has stored it.

        Raises
        ------
        StaleSecretError
            It is not the one that was offered last: another connection has begun meanwhile.
        """
        with self._lock:
            row = self._rows[name]
            if not hmac.compare_digest(row.next, _hash(secret)):
                raise StaleSecretError(f"another connection of the node '{name}' has begun meanwhile")
            self._save(replace(row, current=row.next, next=b"", attempt=b""))

    # ---- contests ----------------------------------------------------------------------------------------------

    def contest(self, name: str, reason: str) -> None:
        """Record that a node's key was used in two places; the first observation counts."""
        with self._lock:
            row = self._rows.get(name, SecretRow(name, b""))
            if not row.contested:
                self._save(replace(row, contested=self._clock(), reason=reason))

    def contested(self, name: str) -> SecretRow | None:
        """Return the secret of a node whose key was used in two places, else None."""
        row = self._rows.get(name)
        return row if row is not None and row.contested else None

    def trust(self, name: str) -> None:
        """Clear the contested state of a node; the machine with the newest secret can connect again."""
        with self._lock:
            if (row := self.contested(name)) is not None:
                self._save(replace(row, contested=0.0, reason=""))

    def _save(self, row: SecretRow) -> None:
        self._store.save_secret(row)
        self._rows[row.name] = row


def _hash(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()
