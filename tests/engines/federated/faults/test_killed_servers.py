"""A server that is killed at whatever it does, and started and resumed again: the sums have the same bits."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_server_killed_before_the_first_round_while_waiting_and_while_folding_costs_no_bit(
    start: Any, faults: Any, until: Any
) -> None:
    cloud = start(heartbeat_seconds=1.0)

    def again() -> None:
        until(lambda: not cloud.server.is_alive(), 90)
        cloud.up()
        until(lambda: all(cloud.node(n).state == "connected" for n in cloud.agents), 90)

    # SCAFFOLD, so that what clients remember must be of the same round too.
    plan = {"server begins": "kill server", "b asked 2": "hold", "server folds 3 2": "kill server"}
    cloud.join("a")
    play = faults.play(cloud, plan, method="scaffold", least=3)
    until(lambda: "waiting for b (never joined), c (never joined)" in cloud.run(play.id).reason)
    cloud.server.kill()  # while the run waits for nodes: it waits on by itself
    again()
    cloud.join("b", "c")
    again()  # killed by the plan before the first round
    assert cloud.run(play.id).state == "interrupted"
    resume(cloud, play)
    until(lambda: play.befell("b asked 2"), 90)
    cloud.server.kill()  # while it waits for an update
    again()
    play.release()
    resume(cloud, play)
    again()  # killed by the plan when one update of the third round was added
    assert play.befell("server folds 3 2")
    resume(cloud, play)
    state, history = play.outcome()
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]
    assert faults.missing(history) == set()
    assert faults.same(state, faults.expected(play))
    assert play.log.count("continuing from the checkpoint of step") == 2


def resume(cloud: Any, play: Any) -> None:
    with cloud.admin() as admin:
        admin.resume(play.id)
