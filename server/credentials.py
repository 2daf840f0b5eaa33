"""Join tokens and node keys; stored as hashes and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import NamedTuple

from ..core.errors import ConfigError, NotFoundError, RefusedError
from ..core.nodes import check_node_name, nearest_name
from ..runs.store import NodeRow, RunStore, TokenRow
from .rolling_secrets import RollingSecrets

_UNLIMITED = -1


@dataclass(frozen=True, slots=True)
class JoinToken:
    """A new join token, ``fs1.<id>.<secret>.<fingerprint>``; the fingerprint is empty without TLS."""

    id: str
    secret: str
    fingerprint: str
    expires: float

    def __str__(self) -> str:
        return f"fs1.{self.id}.{self.secret}.{self.fingerprint}"


class Joined(NamedTuple):
    """What a node receives when it joins: its bearer key, and its first rolling secret."""

    key: str
    secret: str


class WrongSecretError(RefusedError):
    """A token or key is unknown: somebody may be guessing."""


class RevokedError(RefusedError):
    """The node's key was revoked; the agent must not retry."""


def unknown_node(name: str, known: Iterable[str]) -> NotFoundError:
    """Return the error for a node that has never joined."""
    return NotFoundError(
        f"no node has the name '{name[:64]}'", hint=nearest_name(name, known) or "see 'farshore nodes ls'"
    )


class Credentials:
    """The tokens and keys of one server, kept in its run store; use from one event loop.

    Parameters
    ----------
    store : RunStore
    fingerprint : str
        Fingerprint of the server's certificate, part of every token.
    clock : callable
        Returns seconds since 1970; replaceable in tests, together with the store's.
    """

    def __init__(self, store: RunStore, fingerprint: str, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._clock = clock
        self._tokens = {row.id: row for row in store.tokens()}
        self._nodes = {row.name: row for row in store.nodes()}
        self.rolling = RollingSecrets(store, clock)

    # ---- tokens ------------------------------------------------------------------------------------------------

    def create_token(self, valid_seconds: float, uses: int = 0) -> JoinToken:
        """Create a join token; ``uses=0`` allows any number of joins until it expires."""
        now = self._clock()
        token = JoinToken(secrets.token_hex(4), secrets.token_urlsafe(24), self._fingerprint, now + valid_seconds)
        self._save_token(TokenRow(token.id, _hash(token.secret), now, token.expires, uses or _UNLIMITED))
        return token

    def has_tokens(self) -> bool:
        """Return whether any token was ever created; False at a server's first start."""
        return bool(self._tokens)

    def revoke_token(self, token_id: str) -> None:
        """Revoke a token; nodes that joined with it keep their keys.

        Raises
        ------
        NotFoundError
            No token has this id.
        """
        if token_id not in self._tokens:
            raise NotFoundError(f"no join token has the id '{token_id[:40]}'")
        self._save_token(replace(self._tokens[token_id], revoked=self._clock()))

    # ---- nodes -------------------------------------------------------------------------------------------------

    def join(self, token: str, name: str, attempt: str = "") -> Joined:
        """Exchange ``<id>.<secret>`` for a node key and a rolling secret; a refused join is no use of the token.

        Parameters
        ----------
        token : str
        name : str
        attempt : str
            Random text of the joining node. A repeat with the same text succeeds while the key is unused, as the reply
            may have been lost.

        Raises
        ------
        RefusedError
            The token is wrong, expired, revoked or used up, or the name is invalid or taken.
        """
        try:
            check_node_name(name)
        except ConfigError as error:
            raise RefusedError(error.message, hint=error.hint) from error
        token_id, _, secret = token.partition(".")
        repeated = self.rolling.is_repeat(name, attempt)
        row = self._check_token(token_id, secret, used=repeated)
        node = self._nodes.get(name)
        if node is not None and not node.revoked and not repeated:
            self._check_contest(name, row)
        if node is not None and row.created <= node.revoked:
            raise RevokedError(
                f"the node '{name}' was revoked after this token was created", hint="ask for a new token"
            )
        if not repeated:
            used = self._store.use_token(token_id)
            if used is None:
                raise RefusedError("the join token was used up or revoked just now", hint="ask for a new one")
            self._tokens[token_id] = used
        key = secrets.token_urlsafe(32)
        secret = self.rolling.create(name, attempt)  # first, as repeats are recognized by it
        self._save_node(NodeRow(name, _hash(key), self._clock()))
        return Joined(f"{name}:{key}", secret)

    def authenticate(self, key: str) -> str:
        """Return the name of the node that ``key`` belongs to.

        Raises
        ------
        RefusedError
            The key is unknown or revoked.
        """
        name, _, secret = key.partition(":")
        node = self._nodes.get(name)
        matches = hmac.compare_digest(node.key_hash if node else bytes(32), _hash(secret))
        if node is None or not matches:
            raise WrongSecretError("the node key is not known to this server", hint="join again with a token")
        if node.revoked:
            raise RevokedError(f"the node '{name}' was revoked", hint="ask the server's operator for a new token")
        return name

    def revoke_node(self, name: str) -> None:
        """Revoke a node's key; its name becomes available again.

        Raises
        ------
        NotFoundError
            No node has this name.
        """
        if name not in self._nodes:
            raise unknown_node(name, self._nodes)
        self._save_node(replace(self._nodes[name], revoked=self._clock()))

    def update_last_seen(self, name: str, when: float) -> None:
        """Store when a node was last seen, in seconds since 1970; unknown nodes are ignored."""
        if (row := self._nodes.get(name)) is not None and when > row.last_seen:
            self._save_node(replace(row, last_seen=when))

    def nodes(self) -> list[NodeRow]:
        """Return every node that has ever joined, sorted by name."""
        return [row for _, row in sorted(self._nodes.items())]

    # ---- inside ------------------------------------------------------------------------------------------------

    def _save_token(self, row: TokenRow) -> None:
        self._store.save_token(row)
        self._tokens[row.id] = row

    def _save_node(self, row: NodeRow) -> None:
        self._store.save_node(row)
        self._nodes[row.name] = row

    def _check_contest(self, name: str, token: TokenRow) -> None:
        """Raise unless the name is contested and the token was created since, i.e. by an operator's decision."""
        contest = self.rolling.contested(name)
        if contest is None:
            raise RefusedError(
                f"the name '{name}' belongs to another node", hint="choose another name, or revoke that node first"
            )
        if token.created <= contest.contested:
            raise RefusedError(
                f"the key of the node '{name}' was used in two places after this token was created",
                hint="ask for a new token",
            )

    def _check_token(self, token_id: str, secret: str, *, used: bool) -> TokenRow:
        row = self._tokens.get(token_id)
        matches = hmac.compare_digest(row.secret_hash if row else bytes(32), _hash(secret))
        hint = "ask the server's operator for a new one"
        if row is None or not matches:
            raise WrongSecretError(
                "the join token is not known to this server", hint="check that it was copied completely"
            )
        if row.revoked:
            raise RefusedError("the join token was revoked", hint=hint)
        if row.expires <= self._clock():
            raise RefusedError("the join token has expired", hint=hint)
        if row.uses_left == 0 and not used:
            raise RefusedError("the join token is used up", hint=hint)
        return row


def _hash(secret: str) -> bytes:
    # Secrets are long and random, so a single SHA-256 is as safe as a password hash.
    return hashlib.sha256(secret.encode()).digest()
