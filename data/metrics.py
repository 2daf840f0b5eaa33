"""Scores of predictions, computed by scikit-learn, which is imported on first use."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from numpy.typing import ArrayLike

from ..core.errors import MissingExtraError, NotFoundError


def accuracy(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Fraction of correct predictions, 0 to 1.

    Raises
    ------
    MissingExtraError
        scikit-learn is not installed.
    """
    return float(_sklearn().accuracy_score(labels, predictions))


def matthews(labels: ArrayLike, predictions: ArrayLike) -> float:
    """Matthews correlation coefficient: 1 for perfect, −1 for inverted, 0 for constant predictions.

    Raises
    ------
    MissingExtraError
        scikit-learn is not installed.
    """
    return float(_sklearn().matthews_corrcoef(labels, predictions))


#: Score functions by name.
METRICS: dict[str, Callable[[ArrayLike, ArrayLike], float]] = {"accuracy": accuracy, "matthews": matthews}


def score(metric: str, labels: ArrayLike, predictions: ArrayLike) -> float:
    """Score ``predictions`` with a metric of :data:`METRICS`.

    Raises
    ------
    NotFoundError
        No metric has that name.
    MissingExtraError
        scikit-learn is not installed.
    """
    if metric not in METRICS:
        raise NotFoundError(f"unknown metric '{metric}'", hint=f"use one of {', '.join(METRICS)}")
    return METRICS[metric](labels, predictions)


def _sklearn() -> ModuleType | Any:
    try:
        from sklearn import metrics
    except ModuleNotFoundError as error:
        raise MissingExtraError("scikit-learn", "text") from error
    return metrics
