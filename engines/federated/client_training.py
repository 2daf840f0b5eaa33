"""A client's training in a round, or the reason why it cannot train: one client's data never end the whole run."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ...core.errors import DataError
from ...core.processes import user_code_location
from .messages import NO_SAMPLES
from .methods import Work

_log = logging.getLogger(__name__)

#: Errors that a client's samples can cause in a task or model, e.g. batch norm of a single sample. Others are errors of
#: the program, and end the run.
_CLIENT_ERRORS = (ValueError, RuntimeError, IndexError, DataError)


@dataclass(frozen=True, slots=True)
class CannotTrain:
    """Why a client cannot train in a round."""

    reason: str


T = TypeVar("T")


def attempt(action: Callable[[], T]) -> T | CannotTrain:
    """Return what ``action`` returns, or the error that this client's samples caused in it."""
    try:
        return action()
    except _CLIENT_ERRORS as error:
        _log.warning("a client cannot train", exc_info=error)
        lines = str(error).strip().splitlines() or [""]
        return CannotTrain(f"{type(error).__name__}: {lines[0]}{user_code_location(error)}")


def prepare(make: Callable[[], Work]) -> Work | CannotTrain:
    """Return the work that ``make`` returns, if it has samples; a method may do without batches."""
    work = attempt(make)
    return CannotTrain(NO_SAMPLES) if isinstance(work, Work) and work.samples < 1 else work
