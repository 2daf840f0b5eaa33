"""The baseline for a federated run's bytes in reports: FedAvg with as many messages, all without encoding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ...models.flat_params import FlatModel
from .methods import FedAvg

NAME = "uncompressed FedAvg"


def baselines(plain: FlatModel, down: int, up: int) -> dict[str, int]:
    """Return the baseline's bytes by name.

    Parameters
    ----------
    plain : FlatModel
        The model that FedAvg alone would train.
    down, up : int
        States sent to clients and updates received; both have the size of a state.
    """
    return {NAME: (down + up) * sum(array.nbytes for array in FedAvg().start(plain).values())}


def count_messages(history: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Count the states sent and the updates received in the rounds of a history.

    In synchronous rounds, clients without a reply are part of their round's cohort; in asynchronous runs, a cohort
    holds only the clients that replied, and those without a reply are listed separately.
    """
    down = up = 0
    for entry in history:
        cohort, missing = {int(client) for client in entry["cohort"]}, {int(client) for client in entry["missing"]}
        down += len(entry["cohort"]) + len(missing - cohort)
        up += len(entry["cohort"]) - len(missing & cohort)
    return down, up
