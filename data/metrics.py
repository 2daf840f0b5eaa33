"""Scores of predictions, computed by scikit-learn (imported when the first score is asked for)."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from numpy.typing import ArrayLike

from ..core.errors import MissingExtraError, NotFoundError


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Share of right predictions, 0 to 1.

    Raises
    ------
    MissingExtraError
        scikit-learn is not installed.
    """
    return float(_sklearn().accuracy_score(labels, predictions))


def matthews(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Matthews correlation: 1 for perfect, −1 for inverse, 0 for constant predictions (spec section 6).

    Raises
    ------
    MissingExtraError
        scikit-learn is not installed.
    """
    return float(_sklearn().matthews_corrcoef(labels, predictions))


#: Scores by the name that a task gives.
METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {"accuracy": accuracy, "matthews": matthews}


def score(metric: str, labels: ArrayLike, predictions: ArrayLike) -> float:
    """Score ``predictions`` by the metric of that name; :data:`METRICS` has them.

    Raises
    ------
    NotFoundError
        No metric has that name.
    MissingExtraError
        scikit-learn is not installed.
    """
    if metric not in METRICS:
        raise NotFoundError(f"no metric is called '{metric}'", hint=f"use one of {', '.join(METRICS)}")
    return METRICS[metric](labels, predictions)


def _sklearn() -> ModuleType | Any:
    try:
        from sklearn import metrics
    except ModuleNotFoundError as error:
        raise MissingExtraError("scikit-learn", "text") from error
    return metrics
