"""Programs and agents that hang and resume: rounds continue without them, and late replies are discarded."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]


def stopped(run: Any, until: Any) -> psutil.Process:
    """Wait until the program of b has stopped itself; return its process."""
    until(lambda: run.reached("b starts 2"), 90)
    program: psutil.Process = run.program("b")
    until(lambda: program.status() == psutil.STATUS_STOPPED)
    return program


def test_a_hung_program_is_left_out_at_the_deadline_and_takes_part_again_after_resuming(
    shared: Any, faults: Any, until: Any
) -> None:
    # a holds round 4 until b, which hung in round 2, has sent its late reply.
    plan = {"b starts 2": "stop", "a starts 4": "hold"}
    run = faults.submit(shared, plan, rounds=6, deadline=5.0, least=1)
    hung = stopped(run, until)
    until(lambda: run.reached("a starts 4"), 90)
    assert "round 2: b left out: no answer before the deadline" in run.log
    assert "round 3: b left out: no answer before the deadline, still busy with round 2" in run.log
    hung.resume()
    until(lambda: "dropped the late update of b for round 2" in run.log)
    run.release()
    state, history = run.outcome()
    missing = faults.missing(history)
    # It is sent round 4 at once, and takes part in all later rounds.
    assert missing == {(2, 1), (3, 1)}
    assert faults.same(state, faults.expected(run, missing))
    assert run.finish().epoch == 0
    assert [update for update in run.updates() if update[1] == "b"] == [(n, "b") for n in (1, 2, 4, 5, 6)]


def test_a_suspended_machine_is_lost_by_heartbeats_and_takes_part_again_after_resuming(
    shared: Any, faults: Any, until: Any
) -> None:
    # Without a deadline, only missed heartbeats end the wait. a holds round 4 until b is back.
    run = faults.submit(shared, {"b starts 2": "stop", "a starts 4": "hold"}, rounds=6, least=2)
    suspended = [stopped(run, until), psutil.Process(shared.agents["b"].pid)]
    suspended[1].suspend()
    try:
        until(lambda: run.reached("a starts 4"), 90)
        assert shared.node("b").state == "lost"
        assert "round 2: b left out: node b: missed 3 heartbeats" in run.log
        assert "round 3: b left out: node b: missed 3 heartbeats" in run.log
    finally:
        for process in reversed(suspended):
            process.resume()
    until(lambda: shared.node("b").state == "connected", 60)
    until(lambda: "b rejoined" in run.log, 60)
    run.release()
    state, history = run.outcome()
    missing = faults.missing(history)
    assert missing == {(2, 1), (3, 1), (4, 1)}  # round 4 had begun
    assert faults.same(state, faults.expected(run, missing))
    # The update that the resumed program still had to send was discarded.
    assert [update for update in run.updates() if update[1] == "b"] == [(n, "b") for n in (1, 5, 6)]
