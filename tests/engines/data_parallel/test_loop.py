"""The loop of one rank: figures, best states, early stopping."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from farshore.core.errors import RunFailedError
from farshore.engines.data_parallel.protocol import BestState, Figures

from .conftest import MemoryGroup, Waves


def scripted(waves: Waves, scores: list[float], **settings: Any) -> MemoryGroup:
    """Train with evaluations every 2 steps whose errors are given; the last one is that of the end."""
    training = waves.training(**{"eval_every": 2, "log_every": 100, **settings})
    left = iter(scores)
    training.task.evaluate = lambda model: {"error": next(left)}  # type: ignore[method-assign]
    group = MemoryGroup()
    waves.train(training, group)
    return group


def test_figures_and_evaluations_are_reported_at_their_steps(waves: Waves) -> None:
    group = MemoryGroup()
    waves.run(group, steps=6, log_every=4, eval_every=3)
    found = [(step, sorted(control.values)) for step, control, _ in group.sent if isinstance(control, Figures)]
    figures = ["loss", "lr", "slope", "total", "wave"]
    assert found == [(3, ["error"]), (4, figures), (6, figures)]
    assert group.fields.keys() == {"error", "steps", "parameters"}


def test_the_best_states_are_sent_when_they_occur(waves: Waves) -> None:
    group = scripted(waves, [0.5, 0.3, 0.4, 0.2, 0.6, 0.25], keep_best=True)
    sent = [(step, control.score) for step, control, _ in group.sent if isinstance(control, BestState)]
    assert sent == [(2, 0.5), (4, 0.3), (8, 0.2)]
    (state,) = [tensors for step, control, tensors in group.sent if isinstance(control, BestState) and step == 8]
    assert state.keys() == group.result.keys()
    assert not all(torch.equal(state[name], group.result[name]) for name in state)
    assert "best_score" not in group.fields


def test_the_final_state_can_be_the_best(waves: Waves) -> None:
    group = scripted(waves, [0.5, 0.5, 0.5, 0.5, 0.5, 0.1], keep_best=True)
    assert group.fields["best_score"] == 0.1
    assert len([control for _, control, _ in group.sent if isinstance(control, BestState)]) == 1


def test_nothing_is_sent_for_a_best_state_that_nobody_keeps(waves: Waves) -> None:
    group = scripted(waves, [0.5, 0.3, 0.4, 0.2, 0.6, 0.1], early_stop=5)
    assert not [control for _, control, _ in group.sent if isinstance(control, BestState)]
    assert "best_score" not in group.fields


def test_training_stops_early_with_the_evaluation_that_ended_it(waves: Waves) -> None:
    group = scripted(waves, [0.5, 0.3, 0.4, 0.35], early_stop=2, keep_best=True)
    assert group.fields["steps"] == 8
    assert group.fields["error"] == 0.35
    assert "best_score" not in group.fields


@pytest.mark.parametrize("every", [1, 5])
def test_checkpoints_follow_their_interval_and_not_the_end(waves: Waves, every: int) -> None:
    group = MemoryGroup()
    waves.run(group, steps=10, checkpoint_every=every)
    assert list(group.saved) == list(range(every, 10, every))


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(waves: Waves) -> None:
    with pytest.raises(RunFailedError, match=r"the loss is (nan|inf) after step \d+"):
        waves.run(MemoryGroup(), optimizer="sgd", lr=1e6, log_every=1)
