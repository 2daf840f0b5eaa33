"""Workload ``split_segment``: serves transformer blocks to ``farshore.split``; imports torch only when it runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel

from ...core.errors import ConfigError
from ...core.session import NodeSession, ServerSession
from .config import SplitSegment


class SplitSegmentWorkload:
    """Serves the middle blocks of a model to the user's process that owns the rest."""

    name = "split_segment"
    summary = "serve the middle blocks of a model to a training script; started by farshore.split"
    config: type[BaseModel] = SplitSegment
    # The user's half exists only in that process's memory: once it is lost, the run cannot be restarted.
    on_lost_node: Literal["restart", "continue"] = "continue"
    uses_torch = True
    #: A node may open a run of this workload itself.
    node_may_open = True

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """Return nothing: the user's process has the data."""
        return ()

    def server_packages(self, config: BaseModel) -> Sequence[str]:
        """Return the packages that the server's program imports."""
        return ("torch", "transformers")

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Answer the user's process until it closes the run; return the numbers of steps and passes."""
        from .cloud import SegmentServer

        return SegmentServer(session, cast(SplitSegment, config)).serve()

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Refuse to run: the node's program is the user's own process."""
        raise ConfigError(
            f"run {session.run.id} has no program for node '{session.node}'",
            hint="call farshore.split(model, server=…) in a script; it opens the run itself",
        )


WORKLOAD = SplitSegmentWorkload()
