"""Metrics of text tasks."""

from __future__ import annotations

import sys

import pytest

from farshore.core.errors import MissingExtraError, NotFoundError
from farshore.data.metrics import accuracy, matthews, score


def test_matthews_of_perfect_inverse_and_constant_predictions() -> None:
    pytest.importorskip("sklearn")
    labels = [0, 1, 1, 0, 1]
    assert matthews(labels, labels) == pytest.approx(1.0)
    assert matthews(labels, [1 - y for y in labels]) == pytest.approx(-1.0)
    assert matthews(labels, [1] * 5) == 0.0


def test_matthews_against_its_formula() -> None:
    pytest.importorskip("sklearn")
    # TP 2, TN 1, FP 1, FN 1: (2·1 − 1·1) / √(3·3·2·2)
    assert matthews([1, 1, 1, 0, 0], [1, 1, 0, 0, 1]) == pytest.approx(1 / 6)


def test_accuracy_is_the_fraction_of_correct_predictions() -> None:
    pytest.importorskip("sklearn")
    assert accuracy([0, 1, 2, 2], [0, 1, 2, 0]) == 0.75
    assert score("accuracy", [0, 1], [1, 1]) == 0.5


def test_error_about_an_unknown_metric_lists_known_metrics() -> None:
    with pytest.raises(NotFoundError, match=r"'f1'.*accuracy, matthews"):
        score("f1", [0], [0])


def test_error_about_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(MissingExtraError, match=r"\[text\]"):
        accuracy([0], [0])
