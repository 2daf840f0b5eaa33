"""Chooses how a simulation trains its clients: sequentially, several at once (batched), or the faster of the two."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from ...core.errors import ConfigError
from ...engines.federated import batched
from ...engines.federated.client_training import prepare
from ...engines.federated.methods import Work
from ...engines.federated.task import Task
from ...models.flat_params import FlatModel

_REPEATS = 3
_MOST_STEPS = 8


@dataclass(frozen=True, slots=True)
class Execution:
    """How clients are trained, and why; stored as JSON in the run directory.

    Attributes
    ----------
    together : int
        Maximum number of clients trained at once; 1 = sequential.
    why : str
        Reason for the choice.
    sequential_seconds, batched_seconds : float
        Time that the timing probe took in each mode; 0 = no probe was run.
    clients : int
        Number of clients in the probe.
    """

    together: int
    why: str
    sequential_seconds: float = 0.0
    batched_seconds: float = 0.0
    clients: int = 0

    def log_line(self) -> str:
        """Return a summary for the run's log."""
        how = f"batched, up to {self.together} clients at once" if self.together > 1 else "sequential"
        return f"execution: {how} ({self.why})"


def choose_execution(
    mode: Literal["sequential", "batched", "auto"], task: Task, flat: FlatModel, clients: Sequence[int]
) -> Execution:
    """Choose the execution of a run.

    Parameters
    ----------
    mode : {"sequential", "batched", "auto"}
        With ``auto``, the first of ``clients`` are trained for a few steps in both modes, from the initial state, and
        the faster mode is chosen.
    task : Task
    flat : FlatModel
        Model to train with; its parameters are overwritten.
    clients : sequence of int
        Cohort of the first round. Client states are neither read nor changed.

    Raises
    ------
    ConfigError
        ``mode`` is ``batched`` and the task or method does not support it.
    """
    if mode == "sequential":
        return Execution(1, "as configured")
    method = task.method(flat)
    down = method.sent(method.start(flat))
    clients_at_once = batched.group_size(flat)
    prepared = [prepare(partial(task.work, flat, client, 1)) for client in clients[:clients_at_once]]
    works = [_short(work) for work in prepared if isinstance(work, Work)]
    if not works:
        return Execution(1, "none of the first clients can train")
    try:
        batched.check(flat, method, works)
        if mode == "batched":
            return Execution(clients_at_once, "as configured")
        if clients_at_once == 1 or len(works) < 2:
            return Execution(1, "the model is too large to batch" if clients_at_once == 1 else "a round has one client")
        batched.local(flat, method, down, works)
    except ConfigError as error:
        if mode == "batched":
            raise
        return Execution(1, str(error))
    method.local(flat, down, works[0])
    one_by_one = at_once = float("inf")
    for _ in range(_REPEATS):  # alternating, so that other load on the machine affects both modes
        one_by_one = min(one_by_one, _seconds(lambda: [method.local(flat, down, work) for work in works]))
        at_once = min(at_once, _seconds(lambda: batched.local(flat, method, down, works)))
    why = f"{len(works)} clients took {at_once:.4f} s batched, {one_by_one:.4f} s sequentially"
    return Execution(clients_at_once if at_once < one_by_one else 1, why, one_by_one, at_once, len(works))


def _short(work: Work) -> Work:
    """Return ``work`` with its first steps only, so that the probe is shorter than a round."""
    batches, whole = work.batches[:_MOST_STEPS], work.full_batches[:_MOST_STEPS]
    return replace(work, batches=batches, full_batches=whole, client_state={}, means=None)


def _seconds(training: Callable[[], Any]) -> float:
    start = time.perf_counter()
    training()
    return time.perf_counter() - start
