"""What reports compare a federated run's bytes with: FedAvg with as many messages, none of them encoded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...models.flat_params import FlatModel
from .methods import FedAvg

NAME = "uncompressed FedAvg"


def baselines(plain: FlatModel, down: int, up: int) -> dict[str, int]:
    """Dense bytes of so many states down and up; a FedAvg update is a state.

    Parameters
    ----------
    plain : FlatModel
        The model that FedAvg alone would train.
    """
    return {NAME: (down + up) * sum(array.nbytes for array in FedAvg().start(plain).values())}


def messages(history: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """How many states went down and how many updates came up, by the entries of the rounds.

    Clients of whom nothing came are in the cohort of their round; where a schedule does not wait for cohorts, they are
    beside those who replied.
    """
    down = up = 0
    for entry in history:
        cohort, missing = {int(client) for client in entry["cohort"]}, {int(client) for client in entry["missing"]}
        down += len(entry["cohort"]) + len(missing - cohort)
        up += len(entry["cohort"]) - len(missing & cohort)
    return down, up
