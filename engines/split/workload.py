"""The served segment as a workload: what the table of methods points at. Heavy imports happen when a program starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel

from ...core.errors import ConfigError
from ...core.session import NodeSession, ServerSession
from .config import SplitSegment


class SplitSegmentWorkload:
    """Serve the middle of a user's model to the process that owns the rest; opened by ``farshore.split``."""

    name = "split_segment"
    summary = "serve the middle of a model to a user's own training loop; opened by farshore.split, not by hand"
    config: type[BaseModel] = SplitSegment
    # The user's process keeps its half in memory only: when it is gone there is nothing to go back to.
    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = True
    #: A node may open a run of this method for itself.
    node_may_open = True

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """None: the user's process has its data."""
        return ()

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Answer the user's process until it closes; returns how much was done."""
        from .cloud import SegmentServer

        return SegmentServer(session, cast(SplitSegment, config)).serve()

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """There is none: the program is the user's own process."""
        raise ConfigError(
            f"run {session.run.id} has no program for the node '{session.node}'",
            hint="call farshore.split(model, server=…) in a script; it opens the run by itself",
        )


WORKLOAD = SplitSegmentWorkload()
