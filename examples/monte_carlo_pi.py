"""A workload of one's own, both programs by hand: nodes draw random points, the server adds up an estimate of pi."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, Field

from farshore.core.control import Control
from farshore.core.errors import PeerLostError
from farshore.core.message import Message
from farshore.core.nodes import NodeChange
from farshore.core.session import NodeSession, ServerSession


class Config(BaseModel):
    """What 'farshore run' can --set."""

    items: int = Field(200, ge=1, description="pieces of work")
    points: int = Field(1_000_000, ge=1, description="random points of each")


@dataclass(frozen=True)
class Count(Control, kind="count"):
    inside: int  # points of an item that are in the circle


class MonteCarloPi:
    name, summary, config = "monte_carlo_pi", "estimates pi from random points", Config
    uses_torch = False
    on_lost_node: Literal["continue"] = "continue"
    nodes_may_join = True

    def node_data(self, config: BaseModel) -> Sequence[Sequence[str]]:
        return ()  # no data set is needed

    def server_program(self, session: ServerSession, config: Config) -> dict[str, Any]:
        results = session.stream("results")  # what is in it survives a restart, see save_checkpoint
        todo = sorted(set(range(config.items)) - {int(r["item"]) for r in results}, reverse=True)
        idle, working = list(session.channels), dict[str, int]()
        while todo or working:
            while idle and todo:
                working[node := idle.pop()] = item = todo.pop()
                with suppress(PeerLostError):  # reported below, as a change
                    session.channels[node].send(Message("item", step=item))
            node, got = session.receive_any(changes=True)
            if isinstance(got, NodeChange):
                if (item := working.pop(node, None)) is not None:
                    todo.append(item)
                idle = [name for name in idle if name != node] + [node] * (got.kind != "lost")
                continue
            idle.append(node)
            count = Count.read(got, f"node {node}")
            session.append("results", {"item": np.array(working.pop(node)), "inside": np.array(count.inside)})
            session.save_checkpoint(len(results), {}, {})
            session.progress(len(results), config.items, unit="item")
        for node in idle:
            session.channels[node].send(Message("end"))
        return {"pi": 4 * sum(int(r["inside"]) for r in results) / (config.items * config.points)}

    def node_program(self, session: NodeSession, config: Config) -> None:
        while (message := session.channel.receive()).kind == "item":
            x, y = session.run.seed.child("item", message.step).numpy().random((2, config.points))
            inside = int((x * x + y * y < 1).sum())
            session.channel.send(Count(inside).message(step=message.step))


WORKLOAD = MonteCarloPi()
