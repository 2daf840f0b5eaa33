"""Programs and agents of nodes that are killed at chosen moments: an update counts once, and who is back takes part."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]


def test_an_update_whose_node_dies_once_it_was_taken_counts_once_and_costs_no_bit(shared: Any, faults: Any) -> None:
    # The server sees the loss before round 3 begins, and waits for all three: nobody misses anything.
    plan = {"b sent 2": "kill when taken", "server saved 2": "see the loss of b"}
    play = faults.play(shared, plan, least=3)
    state, history = play.outcome()
    assert "node b: its program was killed by signal 9" in play.log
    assert "b rejoined" in play.log
    assert faults.missing(history) == set()
    assert faults.same(state, faults.expected(play))
    # Everybody trained every round once: the round in which b died was not repeated.
    assert play.updates() == [(round_index, node) for round_index in (1, 2, 3, 4) for node in faults.nodes]
    assert {row["attempt"] for row in play.ledger() if row["node"] != "b"} == {0}


@pytest.mark.parametrize("soon", [True, False], ids=["before it is missed", "after it is missed"])
def test_a_killed_agent_that_joins_again_is_in_the_run_again(
    shared: Any, faults: Any, until: Callable[..., Any], soon: bool
) -> None:
    # a holds round 4 until b is back: with the agent its program dies, and the rounds go on without it.
    play = faults.play(shared, {"b asked 2": "hold", "a asked 4": "hold"}, rounds=6)
    until(lambda: play.befell("b asked 2"), 90)
    program = play.program("b")
    shared.agents["b"].kill()
    shared.agents["b"].join()
    psutil.wait_procs([program], 20)
    assert not program.is_running()
    if not soon:
        until(lambda: play.befell("a asked 4"), 60)
        assert shared.node("b").state == "lost"
    shared.join("b")
    until(lambda: "b rejoined" in play.log, 90)
    until(lambda: play.befell("a asked 4"), 60)
    play.release()
    state, history = play.outcome()
    missing = faults.missing(history)
    assert (2, 1) in missing
    assert missing <= {(2, 1), (3, 1), (4, 1)}
    assert faults.same(state, faults.expected(play, missing))
    assert play.updates() == sorted(
        (round_index, node)
        for round_index in range(1, 7)
        for client, node in enumerate(faults.nodes)
        if (round_index, client) not in missing
    )
    assert play.finish().epoch >= 1
