"""Runs the trials of a scenario in parallel processes.

A process imports its libraries once and runs one trial after another. Every trial has a run directory with checkpoints
and a result, so an interrupted experiment continues where it stopped.
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
_OUTPUT_LINES = 40


class Experiment:
    """Runs trials in parallel processes.

    Parameters
    ----------
    trials : sequence of Trial
        Trials to run, in the order in which they start.
    processes : int
        Maximum number of processes; each runs one trial at a time.
    on_event : callable
        Called with each event of each trial, see :data:`OnEvent`.
    """

    def __init__(self, trials: Sequence[Trial], processes: int, on_event: OnEvent) -> None:
        self._trials = deque(trials)
        self._processes = max(1, min(processes, len(trials)))
        self._on_event = on_event

    def run(self) -> None:
        """Run all trials to completion.

        Raises
        ------
        FarshoreError
            The error of the first trial that failed, with its name. The other trials are stopped and can be resumed.
        """
        if self._trials:
            asyncio.run(self._run())

    async def _run(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._processes):
                    group.create_task(self._run_process())
        except* Exception as failures:
            raise failures.exceptions[0] from None

    async def _run_process(self) -> None:
        """Start a process and let it run one trial after another."""
        child = await Child.start("farshore.simulations.trial_process", environment=_single_thread_environment())
        output: deque[str] = deque(maxlen=_OUTPUT_LINES)
        reader = asyncio.create_task(_collect_output(child, output))
        try:
            messages = child.messages()
            while self._trials:
                trial = self._trials.popleft()
                child.send({"type": "trial", "trial": trial.as_dict()})
                self._on_event(trial, {"type": "begun"})
                await self._wait_for_trial(trial, messages, output)
        finally:
            reader.cancel()
            with suppress(asyncio.CancelledError):
                await reader
            await child.stop(_STOP_SECONDS)

    async def _wait_for_trial(self, trial: Trial, messages: Any, output: deque[str]) -> None:
        async for message in messages:
            kind = message.get("type")
            if kind == "failed":
                failure = RunFailedError(f"{trial.name}: {message['error']}")
                failure.exit_code = ExitCode(message["exit_code"])
                raise failure
            self._on_event(trial, message)
            if kind == "finished":
                return
        last_line = f": {output[-1]}" if output else ""
        raise RunFailedError(
            f"{trial.name}: the trial process died{last_line}", hint="run the same command again to resume"
        )


def divide_cores(trials: int, cores: int) -> tuple[int, int]:
    """Return the number of trials to run in parallel and the number of worker processes for each.

    With fewer trials than cores, each trial gets several workers.
    """
    processes = max(1, min(trials, cores))
    return processes, max(1, cores // processes)


def cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _single_thread_environment() -> dict[str, str]:
    """Environment that keeps numerical libraries from starting a thread per core in every process."""
    return {name: os.environ.get(name, "1") for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}


async def _collect_output(child: Child, output: deque[str]) -> None:
    async for line in child.output():
        if line.strip():
            output.append(line)
