"""Rehearsals: the ledger of a run from a few of its rounds, to the byte."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel

from farshore.core.message import Message, Tensor
from farshore.core.session import NodeSession, ServerSession
from farshore.core.traffic_plan import Rehearsal
from farshore.core.transfer import Transfer
from farshore.core.workloads import load
from farshore.simulations.in_process import InProcessRun
from farshore.simulations.rehearsal import rehearsal_of, rehearse

NODES = {"node-1": "node", "node-2": "node"}
COLUMNS = ("node", "direction", "kind", "encoding", "round", "step", "micro", "dense_bytes", "payload_bytes")


class Steps(BaseModel):
    steps: int = 300


class Alternating:
    """Sends a large message in every third step, a small one in the others, and a last one at the end."""

    name, summary, config = "alternating", "", Steps
    on_lost_node: Literal["restart", "continue"] = "restart"
    uses_torch = False

    def server_program(self, session: ServerSession, config: Any) -> dict[str, Any]:
        for step in range(config.steps):
            size = 1000 if step % 3 == 0 else 10
            for channel in session.channels.values():
                channel.send(Message("state", step=step, tensors={"x": Tensor(np.zeros(size, np.float32))}))
                channel.receive()
        return {}

    def node_program(self, session: NodeSession, config: Any) -> None:
        for step in range(config.steps):
            session.channel.receive()
            session.channel.send(Message("answer", step=step, fields={"node": session.node}))


class Rehearsed(Alternating):
    """Names the rehearsal of its runs."""

    def rehearsal(self, config: Any) -> Rehearsal:
        steps = range(config.steps)
        return Rehearsal(Steps(steps=2), "step", {0: steps[::3], 1: [step for step in steps if step % 3]})


def ledger_of_run(workload: Any, config: Any, path: Path) -> list[tuple[Any, ...]]:
    rows: list[Transfer] = []
    InProcessRun(workload, config, path, tuple(NODES), recorder=rows.append).run()
    return sorted(tuple(getattr(row, name) for name in (*COLUMNS, "frame_bytes")) for row in rows)


def ledger_of_rehearsal(workload: Any, config: Any) -> list[tuple[Any, ...]]:
    rehearsal, _ = rehearsal_of(workload, config)
    rows = rehearse(workload, rehearsal, NODES, 0, {}).to_pylist()
    return sorted(tuple(row[name] for name in (*COLUMNS, "frame_bytes")) for row in rows)


def test_a_rehearsed_round_of_ping_stands_for_all_of_them_to_the_byte(tmp_path: Path) -> None:
    ping = load("ping")
    config = ping.config.model_validate({"rounds": 140, "kilobytes": 1})  # round 128 takes a byte more
    assert ledger_of_rehearsal(ping, config) == ledger_of_run(ping, config, tmp_path)


def test_rehearsed_steps_stand_for_the_steps_that_send_the_same(tmp_path: Path) -> None:
    found = ledger_of_rehearsal(Rehearsed(), Steps())
    assert found == ledger_of_run(Alternating(), Steps(), tmp_path)
    assert len({row[-1] for row in found if row[2] == "answer"}) == 3  # steps 0, up to 127, and above


def test_a_workload_without_a_rehearsal_is_executed_from_beginning_to_end(tmp_path: Path) -> None:
    rehearsal, whole = rehearsal_of(Alternating(), Steps(steps=7))  # type: ignore[arg-type]
    assert whole
    assert rehearsal.config == Steps(steps=7)
    assert rehearsal_of(Rehearsed(), Steps())[1] is False  # type: ignore[arg-type]
    steps = Steps(steps=7)
    assert ledger_of_rehearsal(Alternating(), steps) == ledger_of_run(Alternating(), steps, tmp_path)
