"""Two federated runs on the same nodes run one after the other, each with the result that it has alone."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(180)]


def test_a_second_run_on_the_same_nodes_queues_with_a_reason_and_both_are_independent(
    shared: Any, faults: Any, until: Any
) -> None:
    first = faults.submit(shared, {"b starts 2": "hold"}, method="scaffold")
    second = faults.submit(shared, {}, rounds=3)
    until(lambda: first.reached("b starts 2"), 90)
    busy = f"busy with run {first.id}"
    reason = f"waiting for a ({busy}), b ({busy}), c ({busy})"
    until(lambda: shared.run(second.id).reason == reason)
    assert shared.run(second.id).state == "waiting"
    first.release()
    for run in (first, second):
        state, history = run.outcome()
        assert faults.missing(history) == set()
        assert faults.same(state, faults.expected(run))
        # Its ledger has its own updates and no others.
        rounds = range(1, run.config["rounds"] + 1)
        assert run.updates() == [(round_index, node) for round_index in rounds for node in faults.nodes]
        assert run.finish().epoch == 0
