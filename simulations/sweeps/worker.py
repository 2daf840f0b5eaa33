"""A worker process of a sweep, as seen by the thread that gives it items."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from pathlib import Path

from safetensors.numpy import load_file

from ...core.errors import FarshoreError, RunCancelledError, RunFailedError
from ...core.processes import Child, Json
from ...engines.work_queue.item import Outcome
from ...engines.work_queue.workload import Cancellation
from ...wire.io import IoThread
from .worker_process import TENSORS

_STOP_SECONDS = 2.0
_OUTPUT_LINES = 5


class Worker:
    """Runs items in a process of its own, which is started with the first and kept for the next ones.

    An item that fails ends the process, as does a cancelled one; the next item gets a new process.

    Parameters
    ----------
    io : IoThread
        Lives longer than the worker; the process ends with it.
    environment : Mapping[str, str]
        Variables of the process, besides those of this one.
    """

    def __init__(self, io: IoThread, environment: Mapping[str, str]) -> None:
        self._io, self._environment = io, environment
        self._child: Child | None = None

    def run(self, request: Json, cancellation: Cancellation) -> Outcome:
        """Run an item; blocks. The process is killed when ``cancellation`` is requested.

        Raises
        ------
        FarshoreError
            The item failed, or its process died.
        RunCancelledError
            It was cancelled.
        """
        answer = self._io.call(self._run(request, cancellation))
        if answer["type"] == "failed":
            raise FarshoreError(str(answer["error"]))
        tensors = load_file(Path(request["folder"]) / TENSORS) if answer["tensors"] else {}
        return Outcome(answer["metrics"], answer["measured"], tensors)

    def stop(self) -> None:
        """End the process."""
        if self._child is not None:
            self._io.call(self._stop())

    async def _run(self, request: Json, cancellation: Cancellation) -> Json:
        child = self._child
        if child is None:
            child = self._child = await Child.start(
                "farshore.simulations.sweeps.worker_process", environment=self._environment
            )
            self._output: deque[str] = deque(maxlen=_OUTPUT_LINES)
            self._reader = self._io.loop.create_task(_collect(child, self._output))
            self._messages = child.messages()

        def kill() -> None:
            self._io.loop.call_soon_threadsafe(child.kill)

        cancellation.on_request(kill)
        child.send(request)
        answer = await anext(self._messages, None)
        if answer is not None and answer["type"] == "finished":
            return answer
        code = await self._stop()
        if cancellation.requested:
            raise RunCancelledError("the item was cancelled")
        if answer is not None:
            return answer
        last = next((line for line in reversed(self._output) if line.strip()), "")
        raise RunFailedError(f"the worker process died ({_describe(code)}){': ' if last else ''}{last}")

    async def _stop(self) -> int:
        child, self._child = self._child, None
        assert child is not None
        code = await child.stop(_STOP_SECONDS)
        await self._reader
        return code


async def _collect(child: Child, output: deque[str]) -> None:
    async for line in child.output():
        output.append(line)


def _describe(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"
