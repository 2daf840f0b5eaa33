"""SCAFFOLD with virtual data: a killed node returns with the control variate of its last checkpoint."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = [pytest.mark.process, pytest.mark.slow, pytest.mark.timeout(240)]

SETTINGS: dict[str, Any] = {
    "method": "scaffold",
    "rounds": 6,
    "checkpoint_every": 2,
    "local_epochs": 1,
    "batch": 64,
    "lr": 0.05,
    "partition": {"kind": "lda", "alpha": 0.3, "min_size": 20},
    "virtual": {"per_class": 20, "batch": 16, "distribution": "ship"},
}


def test_a_node_of_scaffold_with_virtual_data_returns_with_the_control_variate_of_its_last_checkpoint(
    shared: Any, faults: Any
) -> None:
    # b is killed in round 4 after training: its state of round 3 is lost, that of round 2 was saved.
    run = faults.submit(shared, {"b trained 4": "kill"}, "planned_vhl", least=3, **SETTINGS)
    state, history = run.outcome()
    assert faults.missing(history) == {(4, 1)}
    assert "b rejoined with its checkpoint of step 2" in run.log
    assert faults.same(state, faults.expected(run, {(4, 1)}, state_before))
    # Any other control variate gives a different result.
    assert not faults.same(state, faults.expected(run, {(4, 1)}))
    # The virtual data are on its disk, so the new program declines the offer.
    sent = sorted((row["round"], row["node"]) for row in run.ledger() if row["kind"] == "asset")
    assert sent == [(1, "a"), (1, "b"), (1, "c")]


def state_before(round_index: int, client: int) -> int:
    """The round whose client state a client has before round ``round_index``."""
    return 2 if (round_index, client) == (5, 1) else round_index - 1
