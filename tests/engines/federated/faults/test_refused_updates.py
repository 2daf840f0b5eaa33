"""Invalid updates of real processes are refused with node, round and reason, and the run continues."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


def test_invalid_updates_are_refused_with_node_round_and_reason(shared: Any, faults: Any) -> None:
    plan = {"c trained 1": "nan", "b trained 2": "inf", "a trained 3": "shape", "c trained 4": "dtype"}
    plan |= {"b trained 5": "huge", "a trained 6": "far", "c trained 6": "round", "a starts 1": "print"}
    run = faults.submit(shared, plan, rounds=7, largest_norm=100.0)
    state, history = run.outcome()
    absent = {(1, 2), (2, 1), (3, 0), (4, 2), (5, 1), (6, 0), (6, 2)}
    assert faults.missing(history) == absent
    for line in (
        "round 1: c left out: 'floats' has non-finite values",
        "round 2: b left out: 'floats' has non-finite values",
        "round 3: a left out: expected 'floats' as float32 [83], got float32 [82]",
        "round 4: c left out: expected 'floats' as float32 [83], got float64 [83]",
        "round 5: b left out: 'floats' overflows when multiplied by its weight",
        "round 6: a left out: the update's norm 9.11e+03 exceeds the limit 100 (largest_norm)",
        "round 6: c left out: expected its update for round 6, got a 'update' message for round 7",
        "round 6: 1 of at least 2 replies; the model is unchanged",
    ):
        assert line in run.log
    # They are not in the sums, and their nodes stayed in the run.
    assert faults.same(state, faults.expected(run, absent))
    assert run.finish().epoch == 0


@pytest.mark.slow
def test_nodes_that_exceed_wire_limits_are_disconnected_and_restarted(shared: Any, faults: Any) -> None:
    plan = {"a trained 2": "many tensors", "b trained 2": "long header", "c trained 2": "long payload"}
    run = faults.submit(shared, plan, least=3)
    state, history = run.outcome()
    absent = {(2, client) for client in range(3)}
    assert faults.missing(history) == absent
    breaches = "3 connections in a row violated the wire format: "
    for node, why in {"a": "5000 tensors", "b": f"announces {1 << 21} + ", "c": f" + {1 << 40} bytes"}.items():
        line = next(line for line in run.log.splitlines() if f"round 2: {node} left out: " in line)
        assert breaches in line
        assert why in line
        assert f"{node} rejoined" in run.log
    assert faults.same(state, faults.expected(run, absent))
