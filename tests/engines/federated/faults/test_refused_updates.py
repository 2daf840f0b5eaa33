"""What clients send that does not fit, over real processes: refused, with node, round and reason; the run goes on."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.timeout(180)]


def test_what_does_not_fit_is_refused_with_name_round_and_reason(shared: Any, faults: Any) -> None:
    plan = {"c trained 1": "nan", "b trained 2": "inf", "a trained 3": "shape", "c trained 4": "dtype"}
    plan |= {"b trained 5": "huge", "a trained 6": "far", "c trained 6": "round", "a asked 1": "print"}
    play = faults.play(shared, plan, rounds=7, largest_norm=100.0)
    state, history = play.outcome()
    absent = {(1, 2), (2, 1), (3, 0), (4, 2), (5, 1), (6, 0), (6, 2)}
    assert faults.missing(history) == absent
    for line in (
        "round 1: without c: its 'floats' are not finite",
        "round 2: without b: its 'floats' are not finite",
        "round 3: without a: its 'floats' are float32 [82], not float32 [83]",
        "round 4: without c: its 'floats' are float64",
        "round 5: without b: its 'floats' times its weight are too large to be added",
        "round 6: without a: it moved the model by 9.11e+03, more than the 100 that are allowed",
        "round 6: without c: it sent a 'update' of round 7 instead of its update of 6",
        "round 6: 1 of at least 2 replies came; the model stays as it was",
    ):
        assert line in play.log
    # The sums have not seen them, and nobody lost their place by it.
    assert faults.same(state, faults.expected(play, absent))
    assert play.finish().epoch == 0


@pytest.mark.slow
def test_who_breaks_the_limits_of_the_wire_is_put_out_and_begins_again(shared: Any, faults: Any) -> None:
    plan = {"a trained 2": "many tensors", "b trained 2": "long header", "c trained 2": "long payload"}
    play = faults.play(shared, plan, least=3)
    state, history = play.outcome()
    absent = {(2, client) for client in range(3)}
    assert faults.missing(history) == absent
    breaches = "3 connections in a row broke the wire format: "
    for node, why in {"a": "5000 tensors", "b": f"announces {1 << 21} + ", "c": f" + {1 << 40} bytes"}.items():
        told = next(line for line in play.log.splitlines() if f"round 2: without {node}: " in line)
        assert breaches in told
        assert why in told
        assert f"{node} rejoined" in play.log
    assert faults.same(state, faults.expected(play, absent))
