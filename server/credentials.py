"""Join tokens and node keys: stored as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..core.errors import NotFoundError, RefusedError
from ..runs.store import NodeRow, RunStore, TokenRow

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
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
        shown = "".join(c if c.isprintable() else "?" for c in name[:80])
        raise RefusedError(
            f"'{shown}' is no name for a node",
            hint="use 1 to 64 letters, digits, '.', '_' or '-', the first a letter or digit",
        )
    return name


class Credentials:
    """The tokens and keys of one server; the store holds them, one loop uses them.

    Parameters
    ----------
    store : RunStore
    fingerprint : str
        Certificate's fingerprint that tokens carry.
    clock : callable
        Seconds since 1970; for tests. The store should have the same.
    """

    def __init__(self, store: RunStore, fingerprint: str, clock: Callable[[], float] = time.time) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self._clock = clock
        self._tokens = {row.id: row for row in store.tokens()}
        self._nodes = {row.name: row for row in store.nodes()}

    # ---- tokens ------------------------------------------------------------------------------------------------

    def create_token(self, valid_seconds: float, uses: int = 0) -> JoinToken:
        """Make a join token; ``uses=0`` allows any number of joins until it expires."""
        now = self._clock()
        token = JoinToken(secrets.token_hex(4), secrets.token_urlsafe(24), self._fingerprint, now + valid_seconds)
        self._keep_token(TokenRow(token.id, _hash(token.secret), now, token.expires, uses or _UNLIMITED))
        return token

    def ever_used(self) -> bool:
        """Whether any token was ever made; False at a server's first start."""
        return bool(self._tokens)

    def revoke_token(self, token_id: str) -> None:
        """Make a token useless; nodes that joined with it keep their keys.

        Raises
        ------
        NotFoundError
            No token has that id.
        """
        if token_id not in self._tokens:
            raise NotFoundError(f"no join token has the id '{token_id[:40]}'")
        self._keep_token(replace(self._tokens[token_id], revoked=self._clock()))

    # ---- nodes -------------------------------------------------------------------------------------------------

    def join(self, token: str, name: str) -> str:
        """Trade ``<id>.<secret>`` for a node key; a join that is refused does not use the token up.

        Raises
        ------
        RefusedError
            The token is wrong, expired, revoked or used up, or the name is invalid or taken.
        """
        check_name(name)
        token_id, _, secret = token.partition(".")
        row = self._check_token(token_id, secret)
        node = self._nodes.get(name)
        if node is not None and not node.revoked:
            raise RefusedError(
                f"the name '{name}' belongs to another node", hint="choose another name, or revoke that node first"
            )
        if node is not None and row.created <= node.revoked:
            raise RevokedError(f"the node '{name}' was revoked after this token was made", hint="ask for a new token")
        used = self._store.use_token(token_id)
        if used is None:
            raise RefusedError("the join token was used up or revoked just now", hint="ask for a new one")
        self._tokens[token_id] = used
        key = secrets.token_urlsafe(32)
        self._keep_node(NodeRow(name, _hash(key), self._clock()))
        return f"{name}:{key}"

    def node_of(self, key: str) -> str:
        """Name of the node that ``key`` belongs to.

        Raises
        ------
        RefusedError
            Unknown or revoked.
        """
        name, _, secret = key.partition(":")
        node = self._nodes.get(name)
        known = hmac.compare_digest(node.key_hash if node else bytes(32), _hash(secret))
        if node is None or not known:
            raise RefusedError("the node key is not known here", hint="join again with a token")
        if node.revoked:
            raise RevokedError(f"the node '{name}' was revoked", hint="ask the server's operator for a new token")
        return name

    def revoke_node(self, name: str) -> None:
        """Make a node's key useless; its name is free again.

        Raises
        ------
        NotFoundError
            No node has that name.
        """
        if name not in self._nodes:
            raise NotFoundError(f"no node is called '{name[:64]}'")
        self._keep_node(replace(self._nodes[name], revoked=self._clock()))

    def saw(self, name: str, when: float) -> None:
        """Remember when a node was last seen, seconds since 1970; of a node that is not known, nothing."""
        if (row := self._nodes.get(name)) is not None and when > row.last_seen:
            self._keep_node(replace(row, last_seen=when))

    def nodes(self) -> list[NodeRow]:
        """Every node that ever joined, by name."""
        return [row for _, row in sorted(self._nodes.items())]

    # ---- inside ------------------------------------------------------------------------------------------------

    def _keep_token(self, row: TokenRow) -> None:
        self._store.save_token(row)
        self._tokens[row.id] = row

    def _keep_node(self, row: NodeRow) -> None:
        self._store.save_node(row)
        self._nodes[row.name] = row

    def _check_token(self, token_id: str, secret: str) -> TokenRow:
        row = self._tokens.get(token_id)
        right = hmac.compare_digest(row.secret_hash if row else bytes(32), _hash(secret))
        hint = "ask the server's operator for a new one"
        if row is None or not right:
            raise RefusedError("the join token is not known here", hint="check that it was copied whole")
        if row.revoked:
            raise RefusedError("the join token was revoked", hint=hint)
        if row.expires <= self._clock():
            raise RefusedError("the join token has expired", hint=hint)
        if row.uses_left == 0:
            raise RefusedError("the join token is used up", hint=hint)
        return row


def _hash(secret: str) -> bytes:
    # Secrets are random and long, so one round of SHA-256 is as good as a slow hash.
    return hashlib.sha256(secret.encode()).digest()
