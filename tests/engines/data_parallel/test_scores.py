"""The best score, and when training stops."""

from __future__ import annotations

import math

from farshore.engines.data_parallel.scores import ScoreTracker
from farshore.engines.data_parallel.task import Score


def test_higher_or_lower_scores_are_better_as_the_task_says() -> None:
    higher, lower = ScoreTracker(Score("a")), ScoreTracker(Score("a", higher_is_better=False))
    values = [0.5, 0.7, 0.6, 0.7, 0.4]
    assert [higher.add(v, i) for i, v in enumerate(values)] == [True, True, False, False, False]
    assert [lower.add(v, i) for i, v in enumerate(values)] == [True, False, False, False, True]
    assert (higher.best, higher.best_step, lower.best_step) == (0.7, 1, 4)


def test_training_stops_after_as_many_evaluations_without_a_better_score() -> None:
    tracker = ScoreTracker(Score("a"), patience=2)
    stopped = []
    for step, value in enumerate([1.0, 0.5, 2.0, 1.0, 1.5]):
        tracker.add(value, step)
        stopped.append(tracker.stops)
    assert stopped == [False, False, False, False, True]
    never = ScoreTracker(Score("a"))
    assert not any((never.add(0.0, step), never.stops)[1] for step in range(50))


def test_scores_that_are_not_numbers_are_never_best() -> None:
    tracker = ScoreTracker(Score("a"), patience=2)
    assert not tracker.add(math.nan, 1)
    assert tracker.add(0.1, 2)
    assert not tracker.add(math.nan, 3)
    assert tracker.best == 0.1


def test_a_loaded_tracker_goes_on() -> None:
    tracker, other = ScoreTracker(Score("a"), 2), ScoreTracker(Score("a"), 2)
    tracker.add(0.5, 10)
    tracker.add(0.4, 20)
    other.load(tracker.array())
    assert other == tracker
    other.add(0.3, 30)
    assert other.stops
