"""A server killed at several points, restarted and resumed: the sums are bit-identical."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(600)]


def test_a_server_killed_before_the_first_round_while_waiting_and_while_adding_gives_the_same_result(
    start: Any, faults: Any, until: Any
) -> None:
    cloud = start(heartbeat_seconds=1.0)

    def restart() -> None:
        until(lambda: not cloud.server.is_alive(), 90)
        cloud.up()
        until(lambda: all(cloud.node(n).state == "connected" for n in cloud.agents), 90)

    # SCAFFOLD, so that the client states must be of the same round too.
    plan = {"server starts": "kill server", "b starts 2": "hold", "server adds 3 2": "kill server"}
    cloud.join("a")
    run = faults.submit(cloud, plan, method="scaffold", least=3)
    until(lambda: "waiting for b (never joined), c (never joined)" in cloud.run(run.id).reason)
    cloud.server.kill()  # while the run waits for nodes, which it continues to do
    restart()
    cloud.join("b", "c")
    restart()  # killed by the plan before the first round
    assert cloud.run(run.id).state == "interrupted"
    resume(cloud, run)
    until(lambda: run.reached("b starts 2"), 90)
    cloud.server.kill()  # while it waits for an update
    restart()
    run.release()
    resume(cloud, run)
    restart()  # killed by the plan after one update of the third round was added
    assert run.reached("server adds 3 2")
    resume(cloud, run)
    state, history = run.outcome()
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]
    assert faults.missing(history) == set()
    assert faults.same(state, faults.expected(run))
    assert run.log.count("continuing from the checkpoint of step") == 2


def resume(cloud: Any, run: Any) -> None:
    with cloud.admin() as admin:
        admin.resume(run.id)
