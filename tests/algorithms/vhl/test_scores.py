"""Summary scores of a run."""

from __future__ import annotations

from typing import Any

import pytest

from farshore.algorithms.vhl.scores import rounds_to, summary


def history(*accuracies: float, every: int = 1) -> list[dict[str, Any]]:
    return [
        {"round": r, **({"acc": accuracies[r // every - 1], "acc_nat": 1.0} if r % every == 0 else {})}
        for r in range(1, every * len(accuracies) + 1)
    ]


def test_rounds_to_a_target_is_the_first_round_that_reaches_it() -> None:
    run = history(0.5, 0.79, 0.78, 0.80)
    assert rounds_to(run, 0.79) == 2
    assert rounds_to(run, 0.9) is None
    assert rounds_to(history(0.5, 0.8, every=3), 0.8) == 6  # rounds without a score are counted
    assert rounds_to(run, 0.9, "acc_nat") == 1


def test_bytes_to_a_target_include_the_round_that_reaches_it() -> None:
    run = [entry | {"payload_up": 10 * entry["round"], "payload_down": 1} for entry in history(0.5, 0.79, 0.78, 0.80)]
    found = summary(run, (0.79, 0.8, 0.9))
    assert found["rounds_to"] == {"0.79": 2, "0.8": 4, "0.9": None}
    assert found["bytes_to"] == {"0.79": 32, "0.8": 104, "0.9": None}
    assert summary(history(0.5, 0.79), (0.79,))["bytes_to"] == {"0.79": None}  # no byte counts


def test_summary_has_last_best_and_mean_of_last_ten() -> None:
    found = summary(history(0.9, *[0.1] * 5, *[0.5] * 5), (0.5, 0.95))
    assert (found["acc"], found["acc_best"]) == (0.5, 0.9)
    assert found["acc_last10"] == pytest.approx((5 * 0.1 + 5 * 0.5) / 10)
    assert found["rounds_to"] == {"0.5": 1, "0.95": None}
