"""Federated rounds over real processes that die, come back and send what they should not: the sum does not show it."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize("least", [2, 3])
@pytest.mark.parametrize("place", ["asked", "trained"])
def test_a_node_that_dies_is_left_out_by_name_and_comes_back(shared: Any, faults: Any, place: str, least: int) -> None:
    play = faults.play(shared, {f"b {place} 2": "kill"}, least=least)
    state, history = play.outcome()
    missing = faults.missing(history)
    assert (2, 1) in missing
    assert {client for _, client in missing} == {1}
    if least == 3:  # the next round waits for it
        assert missing == {(2, 1)}
        assert "b rejoined" in play.log
    assert faults.same(state, faults.expected(play, missing))
    assert "round 2: without b: node b: its program was killed by signal 9" in play.log
    assert "node b: starting its program again" in play.log
    assert play.finish().epoch == 1


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
@pytest.mark.parametrize("place", ["server before saving 2", "server saved 2"])
@pytest.mark.parametrize("what", ["kill", "kill server"])
def test_a_killed_server_counts_no_update_twice_and_loses_none(
    start: Any, faults: Any, until: Any, what: str, place: str, method: str
) -> None:
    cloud = start()
    cloud.join(*faults.nodes)
    play = faults.play(cloud, {place: what}, method=method)
    if what == "kill server":
        until(lambda: not cloud.server.is_alive(), 90)
        cloud.up()
        until(lambda: all(cloud.node(n).state == "connected" for n in faults.nodes), 90)
        with cloud.admin() as admin:
            admin.resume(play.id)
    state, history = play.outcome()
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]
    assert all(entry["missing"] == {} for entry in history)
    assert faults.same(state, faults.expected(play))
    assert json.loads(play.finish().result_json)["rounds"] == play.config["rounds"]


@pytest.mark.parametrize(("what", "why"), [("raise", "ValueError: the user's own mistake"), ("exit", "exit(3)")])
def test_a_users_mistake_is_told_with_its_line_and_costs_the_node_a_round(
    shared: Any, faults: Any, what: str, why: str
) -> None:
    play = faults.play(shared, {"b asked 2": what}, least=3)
    state, _ = play.outcome()
    assert faults.same(state, faults.expected(play, {(2, 1)}))
    told = next(line for line in play.log.splitlines() if "round 2: without b" in line)
    assert why in told
    assert "fitting_method.py" in play.log
