"""Programs and agents that hang and wake up again: rounds go on by their policy, and a late reply disturbs nothing."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]


def stopped(play: Any, until: Any) -> psutil.Process:
    """The program of b, which stops itself."""
    until(lambda: play.befell("b asked 2"), 90)
    program: psutil.Process = play.program("b")
    until(lambda: program.status() == psutil.STATUS_STOPPED)
    return program


def test_a_hung_program_is_named_at_the_deadline_and_takes_part_again_once_awake(
    shared: Any, faults: Any, until: Any
) -> None:
    # a holds round 4 until b, which hung in round 2, has sent its late reply.
    plan = {"b asked 2": "stop", "a asked 4": "hold"}
    play = faults.play(shared, plan, rounds=6, deadline=5.0, least=1)
    hung = stopped(play, until)
    until(lambda: play.befell("a asked 4"), 90)
    assert "round 2: without b: no answer before the deadline" in play.log
    assert "round 3: without b: no answer before the deadline, it is still at round 2" in play.log
    hung.resume()
    until(lambda: "dropped what b sent of round 2: too late" in play.log)
    play.release()
    state, history = play.outcome()
    missing = faults.missing(history)
    # It is sent round 4 at once; rounds after that have it in any case.
    assert missing == {(2, 1), (3, 1)}
    assert faults.same(state, faults.expected(play, missing))
    assert play.finish().epoch == 0
    assert [where for where in play.updates() if where[1] == "b"] == [(n, "b") for n in (1, 2, 4, 5, 6)]


def test_a_suspended_machine_is_lost_by_its_heartbeats_and_takes_part_again_once_awake(
    shared: Any, faults: Any, until: Any
) -> None:
    # No deadline: only the heartbeats tell that nothing is to be waited for. a holds round 4 until b is back.
    play = faults.play(shared, {"b asked 2": "stop", "a asked 4": "hold"}, rounds=6, least=2)
    asleep = [stopped(play, until), psutil.Process(shared.agents["b"].pid)]
    asleep[1].suspend()
    try:
        until(lambda: play.befell("a asked 4"), 90)
        assert shared.node("b").state == "lost"
        assert "round 2: without b: node b: missed 3 heartbeats" in play.log
        assert "round 3: without b: node b: missed 3 heartbeats" in play.log
    finally:
        for process in reversed(asleep):
            process.resume()
    until(lambda: shared.node("b").state == "connected", 60)
    until(lambda: "b rejoined" in play.log, 60)
    play.release()
    state, history = play.outcome()
    missing = faults.missing(history)
    assert missing == {(2, 1), (3, 1), (4, 1)}  # round 4 had begun
    assert faults.same(state, faults.expected(play, missing))
    # What the program that woke up still had to send went nowhere.
    assert [where for where in play.updates() if where[1] == "b"] == [(n, "b") for n in (1, 5, 6)]
