"""The trials of a scenario, as many at once as there are cores, in processes that outlive a trial.

A process imports its libraries once and works through trials; a killed experiment goes on where it was, since every
trial is a run directory with checkpoints and a result.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from ..core.errors import ExitCode, RunFailedError
from ..core.processes import Child
from .trial import Trial

#: ``on_event(trial, event)``: ``begun``; ``progress`` with done, total and values; ``finished`` with result.
OnEvent = Callable[[Trial, dict[str, Any]], None]

_STOP_SECONDS = 5.0
_KEPT_LINES = 40


class Experiment:
    """Runs trials that have not finished yet.

    Parameters
    ----------
    trials : sequence of Trial
        In the order in which they are begun.
    at_once : int
        Processes.
    on_event : callable
        Hears what every trial tells.
    """

    def __init__(self, trials: Sequence[Trial], at_once: int, on_event: OnEvent) -> None:
        self._trials = deque(trials)
        self._at_once = max(1, min(at_once, len(trials)))
        self._on_event = on_event

    def run(self) -> None:
        """Run them all.

        Raises
        ------
        FarshoreError
            The first trial that failed, by name; the others were stopped and can be gone on with.
        """
        if self._trials:
            asyncio.run(self._run())

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._at_once):
                    group.create_task(self._work())
        except* Exception as failures:
            raise failures.exceptions[0] from None

    async def _work(self) -> None:
        """Give one process trial after trial."""
        child = await Child.start("farshore.simulations.trial_process", environment=_one_thread())
        said: deque[str] = deque(maxlen=_KEPT_LINES)
        listening = asyncio.create_task(_keep(child, said))
        try:
            messages = child.messages()
            while self._trials:
                trial = self._trials.popleft()
                child.send({"type": "trial", "trial": trial.as_dict()})
                self._on_event(trial, {"type": "begun"})
                await self._attend(trial, messages, said)
        finally:
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening
            await child.stop(_STOP_SECONDS)

    async def _attend(self, trial: Trial, messages: Any, said: deque[str]) -> None:
        async for message in messages:
            kind = message.get("type")
            if kind == "failed":
                failure = RunFailedError(f"{trial.name}: {message['error']}")
                failure.exit_code = ExitCode(message["exit_code"])
                raise failure
            self._on_event(trial, message)
            if kind == "finished":
                return
        last = f": {said[-1]}" if said else ""
        raise RunFailedError(f"{trial.name}: its process died{last}", hint="run the same command again: it goes on")


def plan(trials: int, cores: int) -> tuple[int, int]:
    """How many trials at once, and worker processes for each: many trials go side by side, few share the cores."""
    at_once = max(1, min(trials, cores))
    return at_once, max(1, cores // at_once)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _one_thread() -> dict[str, str]:
    """Libraries that read these at import would otherwise start a thread per core in every process."""
    return {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


async def _keep(child: Child, said: deque[str]) -> None:
    async for line in child.output():
        if line.strip():
            said.append(line)
