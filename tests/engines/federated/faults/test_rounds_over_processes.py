"""Federated rounds over real processes that are killed, fail and return, without effect on the sums."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]


@pytest.mark.parametrize("least", [2, 3])
@pytest.mark.parametrize("place", ["starts", "trained"])
def test_a_killed_node_is_left_out_by_name_and_returns(shared: Any, faults: Any, place: str, least: int) -> None:
    run = faults.submit(shared, {f"b {place} 2": "kill"}, least=least)
    state, history = run.outcome()
    missing = faults.missing(history)
    assert (2, 1) in missing
    assert {client for _, client in missing} == {1}
    if least == 3:  # the next round waits for it
        assert missing == {(2, 1)}
        assert "b rejoined" in run.log
    assert faults.same(state, faults.expected(run, missing))
    assert "round 2: b left out: node b: its program was killed by signal 9" in run.log
    assert "node b: starting a new program" in run.log
    assert run.finish().epoch == 1


@pytest.mark.parametrize("method", ["fedavg", "scaffold"])
@pytest.mark.parametrize("place", ["server before saving 2", "server saved 2"])
@pytest.mark.parametrize("what", ["kill", "kill server"])
def test_a_killed_server_counts_each_update_once(
    start: Any, faults: Any, until: Any, what: str, place: str, method: str
) -> None:
    cloud = start()
    cloud.join(*faults.nodes)
    run = faults.submit(cloud, {place: what}, method=method)
    if what == "kill server":
        until(lambda: not cloud.server.is_alive(), 90)
        cloud.up()
        until(lambda: all(cloud.node(n).state == "connected" for n in faults.nodes), 90)
        with cloud.admin() as admin:
            admin.resume(run.id)
    state, history = run.outcome()
    assert [entry["round"] for entry in history] == [1, 2, 3, 4]
    assert all(entry["missing"] == {} for entry in history)
    assert faults.same(state, faults.expected(run))
    assert json.loads(run.finish().result_json)["rounds"] == run.config["rounds"]


@pytest.mark.parametrize(("what", "why"), [("raise", "ValueError: the user's own mistake"), ("exit", "exit(3)")])
def test_an_error_in_user_code_is_logged_with_its_line_and_costs_the_node_one_round(
    shared: Any, faults: Any, what: str, why: str
) -> None:
    run = faults.submit(shared, {"b starts 2": what}, least=3)
    state, _ = run.outcome()
    assert faults.same(state, faults.expected(run, {(2, 1)}))
    line = next(line for line in run.log.splitlines() if "round 2: b left out" in line)
    assert why in line
    assert "fitting_method.py" in run.log
