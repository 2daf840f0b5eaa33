"""What follows from decisions about nodes' keys: joined again, used in two places, trusted, revoked."""

from __future__ import annotations

from collections.abc import Callable

from ..core.errors import ConfigError
from ..proto import control_pb2 as pb
from .credentials import Credentials, unknown_node
from .data_service import Route
from .registry import Node, Registry
from .run import Event
from .run_repository import RunRepository


class NodeKeys:
    """Applies decisions about nodes' keys to their connections and runs; use from the orchestrator's event loop.

    Parameters
    ----------
    credentials : Credentials
    registry : Registry
    runs : RunRepository
    routes : dict
        Routes of data connections, by ticket.
    on_lost : callable
        ``on_lost(node)``: called when a node cannot take part in its run any longer.
    """

    def __init__(
        self,
        credentials: Credentials,
        registry: Registry,
        runs: RunRepository,
        routes: dict[str, Route],
        on_lost: Callable[[Node], None],
    ) -> None:
        self._credentials, self._registry, self._runs = credentials, registry, runs
        self._routes, self._on_lost = routes, on_lost

    def joined(self, name: str) -> None:
        """Disconnect a process that uses an older key of a node that has just joined."""
        self._revoke_tickets(name)
        if (node := self._registry.get(name)) is not None and node.commands is not None:
            goodbye = pb.Goodbye(reason="the node has joined again, with a new key")
            self._registry.command(node, pb.NodeCommand(goodbye=goodbye))
        if node is not None:
            node.contested = ""

    def contested(self, node: Node) -> None:
        """Give no more runs to a node whose key is used in two places; a run in progress goes on."""
        run = self._runs.find(node.run) if node.run else None
        if run is None:
            self._registry.end_stream(node)
            return
        line = f"node {node.name}: its key is used in two places; the run goes on, but the node gets no other"
        run.log.write("server", [f"{line} until an operator decides: farshore nodes trust {node.name}"])
        run.notify()

    def trust(self, name: str) -> Node:
        """Admit a node again whose key was used in two places: the machine with the newest secret.

        Raises
        ------
        NotFoundError
            No node has this name.
        ConfigError
            Its key was not used in two places.
        """
        node = self._registry.get(name)
        if node is None:
            raise unknown_node(name, (node.name for node in self._registry))
        if self._credentials.rolling.contested(name) is None:
            raise ConfigError(f"the node '{name}' is not contested")
        self._credentials.rolling.trust(name)
        node.contested = ""
        self._registry.changed()
        return node

    def revoke(self, name: str) -> None:
        """Revoke a node's key and its tickets, and end its connections."""
        self._credentials.revoke_node(name)
        self._revoke_tickets(name)
        if (node := self._registry.revoke(name)) is not None:
            self._on_lost(node)

    def _revoke_tickets(self, name: str) -> None:
        for ticket, route in list(self._routes.items()):
            if route.node == name:
                del self._routes[ticket]
                route.revoked.set()
                if (run := self._runs.find(route.run_id)) is not None:  # its process may listen to nodes directly
                    run.inbox.put_nowait(Event("revoked", name, run.epoch))
