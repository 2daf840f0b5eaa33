"""The members of a server session that concern the channels of its nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, overload

from ..core.message import Message
from ..core.nodes import NodeChange, NodeInfo
from ..core.session import Channel
from .cohort import Cohort


class CohortSession:
    """Channels and nodes of a run; a base class of server sessions, see :class:`farshore.core.session.ServerSession`.

    Attributes
    ----------
    cohort : Cohort
        Set by the session.
    """

    cohort: Cohort

    @property
    def channels(self) -> Mapping[str, Channel]:
        """One channel per node, in cohort order."""
        return self.cohort.channels

    @property
    def nodes(self) -> Mapping[str, NodeInfo]:
        """Role, shard, labels and profile of each node."""
        return self.cohort.nodes

    @overload
    def receive_any(self, nodes: Sequence[str] | None = None, timeout: float | None = None) -> tuple[str, Message]: ...

    @overload
    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: Literal[True]
    ) -> tuple[str, Message | NodeChange]: ...

    def receive_any(
        self, nodes: Sequence[str] | None = None, timeout: float | None = None, *, changes: bool = False
    ) -> tuple[str, Message | NodeChange]:
        """Return the next message from ``nodes`` (default: all), or change of the cohort, with the node's name."""
        return self.cohort.receive(nodes, timeout, changes=changes)

    def dismiss(self, node: str, reason: str) -> None:
        """Close the channel to ``node``; its program receives ``reason`` with the error."""
        self.cohort.dismiss(node, reason)

    def readmit(self, least: int = 0) -> list[str]:
        """Switch to the channels of nodes that are ready; block while fewer than ``least`` nodes are connected."""
        return self.cohort.readmit(least)
