"""Small workloads that use every part of the contract; the tests run them in process and over real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from farshore.core.errors import PeerLostError
from farshore.core.message import Message, Tensor
from farshore.core.nodes import NodeChange, Role
from farshore.core.session import NodeSession, ServerSession


class _Base:
    uses_torch = False

    def node_data(self, config: Any) -> Sequence[Sequence[str]]:
        return ()


class CountingConfig(BaseModel):
    """``wait_at``: the step before which the server waits for a change of the kind ``wait_for``."""

    steps: int = 100
    checkpoint_every: int = 10
    records: int = 1
    wait_at: int = -1
    wait_for: Literal["joined", "returned"] = "joined"
    victim: str = ""
    kill_at: int = -1
    pause: float = 0.0


class Counting(_Base):
    """Gives one item after another to a node; the newest node comes first. Records who did what."""

    name, summary, config = "counting", "counts", CountingConfig
    on_lost_node: Literal["restart", "continue"] = "continue"
    nodes_may_join = True

    def server_program(self, session: ServerSession, config: CountingConfig) -> dict[str, Any]:
        changes: list[list[Any]] = []
        workers = list(session.channels)
        done = session.resume_step or 0
        if done:
            changes = session.load_checkpoint(done)[1]["changes"]
        names: list[str] = []
        while done < config.steps:
            waiting = done == config.wait_at and not any(kind == config.wait_for for _, _, kind in changes)
            asked = None if waiting or not workers else workers[0]
            if waiting:
                time.sleep(0.2)  # progress that follows too soon is left out
                session.progress(done, config.steps, unit="step")
            if asked is not None:
                with suppress(PeerLostError):  # it is reported as a change
                    session.channels[asked].send(Message("work", step=done))
            while True:
                node, got = session.receive_any(timeout=60, changes=True)
                if isinstance(got, NodeChange):
                    changes.append([done, node, got.kind])
                    workers = [w for w in workers if w != node]
                    if got.kind != "lost":
                        workers.insert(0, node)
                    if asked in (None, node):
                        break
                elif got.step == done and node == asked:
                    break
            if isinstance(got, NodeChange):
                continue
            names.append(node)
            for place in range(config.records):
                number = np.array(config.records * done + place)
                session.append("items", {"number": number, "node": np.frombuffer(node.encode(), np.uint8)})
            done += 1
            if done % config.checkpoint_every == 0:
                session.save_checkpoint(done, {}, {"changes": changes})
            session.progress(done, config.steps, unit="step")
        for node in workers:
            session.channels[node].send(Message("end"))
        doers = [bytes(r["node"]).decode() for r in session.stream("items")][:: config.records]
        return {"doers": doers, "changes": changes, "records": len(session.stream("items"))}

    def node_program(self, session: NodeSession, config: CountingConfig) -> None:
        while (message := session.channel.receive()).kind == "work":
            if session.node == config.victim and message.step == config.kill_at and not session.run.epoch:
                os.kill(os.getpid(), signal.SIGKILL)
            time.sleep(config.pause)
            session.metrics(message.step, items=1.0, step_squared=float(message.step) ** 2)
            session.channel.send(Message("done", step=message.step))


class PublishingConfig(BaseModel):
    values: int = 100
    kilobytes: int = 256
    folder: str = "."


class Publishing(_Base):
    """Publishes many values to a node that does not read, and then sends ``go``."""

    name, summary, config = "publishing", "publishes", PublishingConfig
    on_lost_node: Literal["restart", "continue"] = "restart"

    def server_program(self, session: ServerSession, config: PublishingConfig) -> dict[str, Any]:
        (channel,) = session.channels.values()
        channel.receive()
        for step in range(1, config.values + 1):
            value = np.full(config.kilobytes << 10, step % 251, np.uint8)
            channel.publish("value", Message("weights", step=step, tensors={"value": Tensor(value)}))
        channel.send(Message("go"))
        Path(config.folder, "published").touch()
        answer = channel.receive(60)
        return {"steps": [int(step) for step in str(answer.fields["steps"]).split(",")]}

    def node_program(self, session: NodeSession, config: PublishingConfig) -> None:
        session.channel.send(Message("ready"))
        while not Path(config.folder, "published").exists():
            time.sleep(0.02)
        time.sleep(1.0)  # everything on its way arrives
        steps = []
        while (message := session.channel.receive(30)).kind != "go":
            assert (message.array("value") == message.step % 251).all()
            steps.append(str(message.step))
        session.channel.send(Message("answer", fields={"steps": ",".join(steps)}))


class RolesConfig(BaseModel):
    needs: str = ""


class Roles(_Base):
    """Returns what server and nodes see of roles, shards, labels and profiles."""

    name, summary, config = "roles", "has roles", RolesConfig
    on_lost_node: Literal["restart", "continue"] = "restart"

    def roles(self, config: RolesConfig) -> Sequence[Role]:
        needs: Any = tuple(filter(None, config.needs.split(",")))
        return (Role("lidar"), Role("camera", 2, labels={"sensor": "camera"}, needs=needs))

    def server_program(self, session: ServerSession, config: RolesConfig) -> dict[str, Any]:
        seen = {}
        for node, channel in session.channels.items():
            answer = channel.receive(60)
            info = session.nodes[node]
            profile = info.profile
            seen[node] = {
                "server": [info.role, *info.shard],
                "node": [answer.fields[name] for name in ("role", "index", "count")],
                "labels": dict(info.labels),
                "profile": [profile.cores, profile.matmul_gflops, profile.torch, len(profile.accelerators)],
            }
        return seen

    def node_program(self, session: NodeSession, config: RolesConfig) -> None:
        index, count = session.shard
        session.channel.send(Message("hi", fields={"role": session.role, "index": index, "count": count}))


COUNTING, PUBLISHING, ROLES = Counting(), Publishing(), Roles()
