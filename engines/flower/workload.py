"""The workload ``flower``: runs an unmodified Flower app; ``flwr`` is imported when a program starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from pydantic import BaseModel

from ...core.session import Code, NodeSession, ServerSession
from .config import FlowerRun


class FlowerWorkload:
    """Runs unmodified Flower apps; see ``docs/flower.md``."""

    name = "flower"
    summary = "an unmodified Flower app: farshore run flower --app DIR"
    config: type[BaseModel] = FlowerRun
    on_lost_node: Literal["restart", "continue"] = "continue"
    #: Apps exchange NumPy arrays, so server and nodes may have different versions of torch.
    uses_torch = False

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        """None; apps find their own data."""
        return ()

    def code(self, config: BaseModel) -> Code:
        """The app's code, which operators must accept."""
        return cast(FlowerRun, config).code

    def server_program(self, session: ServerSession, config: BaseModel) -> dict[str, Any]:
        """Run the app's ServerApp."""
        from .server import serve

        return serve(session, cast(FlowerRun, config))

    def node_program(self, session: NodeSession, config: BaseModel) -> None:
        """Host the app's ClientApp."""
        from .node import Host

        Host(session, cast(FlowerRun, config)).run()


WORKLOAD = FlowerWorkload()
