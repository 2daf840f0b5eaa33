"""SCAFFOLD with virtual data where a node is killed and returns: its control variate is the one it kept."""

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
    # b dies in round 4, once it has trained: what it remembers of round 3 goes with it, and round 2's was kept.
    play = faults.play(shared, {"b trained 4": "kill"}, "planned_vhl", least=3, **SETTINGS)
    state, history = play.outcome()
    assert faults.missing(history) == {(4, 1)}
    assert "b rejoined with its checkpoint of step 2" in play.log
    assert faults.same(state, faults.expected(play, {(4, 1)}, memory_before))
    # Any other control variate would show.
    assert not faults.same(state, faults.expected(play, {(4, 1)}))
    # The virtual data lie on its disk: the new program is offered them, and wants nothing.
    sent = sorted((row["round"], row["node"]) for row in play.ledger() if row["kind"] == "virtual")
    assert sent == [(1, "a"), (1, "b"), (1, "c")]


def memory_before(round_index: int, client: int) -> int:
    """The round after which a client's memory was as it is before round ``round_index``."""
    return 2 if (round_index, client) == (5, 1) else round_index - 1
