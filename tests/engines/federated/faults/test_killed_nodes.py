"""Node programs and agents killed at chosen moments: updates count once, and returning nodes take part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]


def test_an_update_received_before_its_node_was_killed_counts_once(shared: Any, faults: Any) -> None:
    # The server notices the loss before round 3 and waits for all three nodes, so none misses a round.
    plan = {"b sent 2": "kill when taken", "server saved 2": "see the loss of b"}
    run = faults.submit(shared, plan, least=3)
    state, history = run.outcome()
    assert "node b: its program was killed by signal 9" in run.log
    assert "b rejoined" in run.log
    assert faults.missing(history) == set()
    assert faults.same(state, faults.expected(run))
    # Each node trained each round once: the round in which b was killed was not repeated.
    assert run.updates() == [(round_index, node) for round_index in (1, 2, 3, 4) for node in faults.nodes]
    assert {row["attempt"] for row in run.ledger() if row["node"] != "b"} == {0}


@pytest.mark.parametrize("soon", [True, False], ids=["before it is missed", "after it is missed"])
def test_a_killed_agent_that_rejoins_takes_part_in_the_run_again(
    shared: Any, faults: Any, until: Callable[..., Any], soon: bool
) -> None:
    # The program ends with its agent, and rounds continue without it. a holds round 4 until b is back.
    run = faults.submit(shared, {"b starts 2": "hold", "a starts 4": "hold"}, rounds=6)
    until(lambda: run.reached("b starts 2"), 90)
    program = run.program("b")
    shared.agents["b"].kill()
    shared.agents["b"].join()
    psutil.wait_procs([program], 20)
    assert not program.is_running()
    if not soon:
        until(lambda: run.reached("a starts 4"), 60)
        assert shared.node("b").state == "lost"
    shared.join("b")
    until(lambda: "b rejoined" in run.log, 90)
    until(lambda: run.reached("a starts 4"), 60)
    run.release()
    state, history = run.outcome()
    missing = faults.missing(history)
    assert (2, 1) in missing
    assert missing <= {(2, 1), (3, 1), (4, 1)}
    assert faults.same(state, faults.expected(run, missing))
    assert run.updates() == sorted(
        (round_index, node)
        for round_index in range(1, 7)
        for client, node in enumerate(faults.nodes)
        if (round_index, client) not in missing
    )
    assert run.finish().epoch >= 1
