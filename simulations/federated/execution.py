"""How a simulation computes its clients' training: one after another, several at once, or whichever is faster here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ...core.errors import ConfigError
from ...engines.federated import batched
from ...engines.federated.methods import Work
from ...engines.federated.task import Task
from ...models.flat_params import FlatModel

_REPEATS = 3
_MOST_STEPS = 8


@dataclass(frozen=True, slots=True)
class Execution:
    """What was chosen, and why; JSON-able, for the run directory.

    Attributes
    ----------
    together : int
        Clients that are trained at once; 1 = one after another.
    why : str
    sequential_seconds, batched_seconds : float
        What the probe's clients took each way; 0 = nothing was timed.
    clients : int
        Of the probe.
    """

    together: int
    why: str
    sequential_seconds: float = 0.0
    batched_seconds: float = 0.0
    clients: int = 0

    def told(self) -> str:
        """A line for the log."""
        how = f"batched, up to {self.together} clients at once" if self.together > 1 else "sequential"
        return f"execution: {how} ({self.why})"


def choose(
    wanted: Literal["sequential", "batched", "auto"], task: Task, flat: FlatModel, clients: Sequence[int]
) -> Execution:
    """The execution of a run.

    Parameters
    ----------
    wanted : {"sequential", "batched", "auto"}
        With ``auto`` the first clients of ``clients`` are trained both ways, from the initial state, a few steps each.
    task : Task
    flat : FlatModel
        Overwritten.
    clients : sequence of int
        The first round's. What they remember is neither read nor changed.

    Raises
    ------
    ConfigError
        ``batched`` is wanted and cannot be.
    """
    if wanted == "sequential":
        return Execution(1, "as configured")
    method = task.method(flat)
    down = method.sent(method.start(flat))
    most = batched.group_size(flat)
    works = [_short(task.work(flat, client, 1)) for client in clients[:most]]
    try:
        batched.check(flat, method, works)
        if wanted == "batched":
            return Execution(most, "as configured")
        if most == 1 or len(works) < 2:
            return Execution(1, "the model is large" if most == 1 else "a round has one client")
        batched.local(flat, method, down, works)
    except ConfigError as error:
        if wanted == "batched":
            raise
        return Execution(1, str(error))
    method.local(flat, down, works[0])
    alone = together = float("inf")
    for _ in range(_REPEATS):  # in turns, so that whatever else the machine does meets both
        alone = min(alone, _seconds(lambda: [method.local(flat, down, work) for work in works]))
        together = min(together, _seconds(lambda: batched.local(flat, method, down, works)))
    why = f"{len(works)} clients took {together:.4f} s at once, {alone:.4f} s one after another"
    return Execution(most if together < alone else 1, why, alone, together, len(works))


def _short(work: Work) -> Work:
    """Its first steps; a probe need not take as long as a round."""
    batches, whole = work.batches[:_MOST_STEPS], work.full_batches[:_MOST_STEPS]
    return replace(work, batches=batches, full_batches=whole, client_state={}, means=None)


def _seconds(what: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    what()
    return time.perf_counter() - begun
