"""Admission of nodes to the control stream: the key, the rolling secret, and a second process with the same key."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence

from ..core.errors import FarshoreError
from ..proto import control_pb2 as pb
from .credentials import Credentials
from .registry import MAX_MISSED_HEARTBEATS, Node, Registry
from .rolling_secrets import ContestedError, StaleSecretError

_log = logging.getLogger(__name__)


class NodeAdmission:
    """Decides which connections become a node's control stream; use from the orchestrator's event loop.

    Parameters
    ----------
    credentials : Credentials
    registry : Registry
    on_contested : callable
        ``on_contested(node)``: called when a node's key was found in use in two places.
    """

    def __init__(self, credentials: Credentials, registry: Registry, on_contested: Callable[[Node], None]) -> None:
        self._credentials, self._registry, self._on_contested = credentials, registry, on_contested

    async def admit(self, name: str, hello: pb.Hello, presented: Sequence[str], host: str) -> str:
        """Check a connection with the right key; returns the secret that the node must store and confirm.

        Parameters
        ----------
        name : str
            The node that the key belongs to.
        hello : Hello
        presented : sequence of str
            The secrets that the connecting process has stored.
        host : str
            Where it connects from.

        Raises
        ------
        StaleSecretError, ContestedError
            The key is used in two places, or was before and no operator has decided yet.
        """
        rolling = self._credentials.rolling
        node = self._registry.get(name)
        same = node is not None and bool(hello.instance) and node.hello.instance == hello.instance
        if not rolling.is_valid(name, presented):
            await self._contest(name, f"{host} presented an outdated secret")
            raise StaleSecretError(
                f"the key of the node '{name}' has been used elsewhere since: it is contested",
                hint="ask the server's operator for a new join token, and join again with --token",
            )
        if rolling.contested(name) is None and node is not None and not same and await self._still_runs(node):
            await self._contest(name, f"{host} connected while the node was connected")
        if rolling.contested(name) is not None and not (same and node is not None and node.run):
            raise contested_error(name)
        return await asyncio.to_thread(rolling.offer, name, presented)

    async def confirm(self, name: str, secret: str) -> None:
        """Make a secret that a node has stored the only valid one.

        Raises
        ------
        StaleSecretError
            Another connection has begun meanwhile.
        """
        await asyncio.to_thread(self._credentials.rolling.confirm, name, secret)

    async def _still_runs(self, node: Node) -> bool:
        """Ask the process that is connected as ``node``; it is given as long as its heartbeats are."""
        if node.commands is None or node.state != "connected":
            return False
        if node.challenge is None or node.challenge[1].done():
            node.challenge = (secrets.token_hex(8), asyncio.get_running_loop().create_future())
            self._registry.command(node, pb.NodeCommand(challenge=pb.Challenge(nonce=node.challenge[0])))
        try:
            async with asyncio.timeout(MAX_MISSED_HEARTBEATS * self._registry.heartbeat_seconds):
                return await asyncio.shield(node.challenge[1])  # others may wait for the same answer
        except TimeoutError:
            return False

    async def _contest(self, name: str, reason: str) -> None:
        node = self._registry.get(name)
        if node is not None and node.address:
            reason += f"; the node itself {'is' if node.commands is not None else 'was last'} at {node.address}"
        await asyncio.to_thread(self._credentials.rolling.contest, name, reason)
        row = self._credentials.rolling.contested(name)
        if node is not None and row is not None and not node.contested:
            node.contested = row.reason
            _log.error("node %s: its key is used in two places: %s", name, row.reason)
            self._on_contested(node)


def contested_error(name: str) -> FarshoreError:
    """Return the error for a node whose key was used in two places."""
    return ContestedError(
        f"the key of the node '{name}' was used in two places",
        hint=f"the server's operator decides: 'farshore nodes ls' shows where, 'farshore nodes trust {name}' admits it",
    )
