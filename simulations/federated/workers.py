"""Trains simulated clients in worker processes of this machine.

A cohort is cut into blocks that are nodes of its reduction tree, so results have the same bits for any number of
workers. If a worker dies, its block's client states are restored and a new worker trains the block again.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from ...core.errors import RunFailedError
from ...engines.federated.client_pool import Reply
from ...engines.federated.methods import FederatedMethod, Update
from ...engines.federated.tree import NamedArrays, TreeSum, blocks
from ..sizes import Size
from .client_runner import BlockResult
from .shared_arrays import SharedArrays
from .shared_block import FILE_PREFIX
from .shared_client_state import SharedClientStates
from .shared_sums import SharedSums
from .worker_process import WorkerSpec, main

_log = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")
_STOP_SECONDS = 2.0

#: Number of workers that may die in one round before the run fails.
_LOST_IN_A_ROUND = 3


class _LostError(RunFailedError):
    """A worker process died."""


class Workers:
    """Worker processes with one model each; implements ClientExecutor. A context manager.

    Parameters
    ----------
    spec : WorkerSpec
    count : int
        Number of workers.
    client_states : SharedClientStates
        Restored for the clients of a block whose worker died.
    """

    def __init__(self, spec: WorkerSpec, count: int, client_states: SharedClientStates) -> None:
        self._spec, self._count, self._client_states = spec, count, client_states
        self._processes: dict[Connection, BaseProcess] = {}
        self._state: SharedArrays | None = None
        self._sums: SharedSums | None = None
        self._outputs: dict[Connection, SharedArrays] = {}  # where each worker writes its sum
        self._saved_round = 0

    def __enter__(self) -> Workers:
        for path in Path(self._spec.client_state_dir).parent.glob(f"{FILE_PREFIX}*"):
            path.unlink(missing_ok=True)  # left by a process that was killed
        for index in range(self._count):
            self._start(f"worker {index}")
        try:
            for connection in self._processes:
                self._read(connection)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all workers and free the shared memory."""
        for connection in self._processes:
            connection.close()
        for process in self._processes.values():
            process.join(_STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        for shared in (self._sums, self._state):
            if shared is not None:
                shared.close()
        self._processes, self._outputs, self._sums, self._state = {}, {}, None, None

    def train(self, round_index: int, cohort: Sequence[int], down: NamedArrays, method: FederatedMethod) -> BlockResult:
        """Train a whole cohort from the state ``down`` in round ``round_index``.

        Raises
        ------
        RunFailedError
            A worker's task raised an error, or too many workers died.
        """
        sums = self._share_state(down, method)
        cohort_blocks = blocks(len(cohort), len(self._processes), self._spec.clients_at_once)
        level = (cohort_blocks[0][1] - 1).bit_length()
        tree, done = TreeSum(len(cohort), release=sums.release), dict[int, dict[str, Any]]()
        for first, response, total in self._responses(round_index, cohort, cohort_blocks):
            done[first] = response
            if response["empty"]:
                tree.skip(first, level)
                sums.release(total)
            else:
                tree.add(first, total, level)
        if (root := tree.total()) is not None:
            sums.release(root)  # copied on the next line, before a worker reuses it
            root = {name: array.copy() for name, array in root.items()}
        return _combine([done[first] for first, _ in cohort_blocks], root)

    def checkpoint_saved(self, round_index: int) -> None:
        """Note that round ``round_index`` has a checkpoint; workers receive it with their next request."""
        self._saved_round = round_index

    def _responses(
        self, round_index: int, cohort: Sequence[int], cohort_blocks: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, dict[str, Any], NamedArrays]]:
        """Assign blocks to idle workers; yield each block's first position, the response and the sum."""
        pending, busy, lost = list(reversed(cohort_blocks)), dict[Connection, tuple[int, int]](), 0
        for connection in self._processes:
            if pending:
                busy[connection] = self._request(connection, round_index, cohort, pending.pop())
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                first, count = block = busy.pop(ready)
                try:
                    response = self._read(ready)
                except _LostError as error:
                    lost += 1
                    if lost > _LOST_IN_A_ROUND:
                        raise RunFailedError(f"round {round_index}: too many workers died: {error}") from None
                    _log.warning("round %d: %s; its clients are trained again", round_index, error)
                    replacement = self._replace(ready)  # before the restore: the old process must not write any more
                    self._client_states.restore(round_index - 1, set(cohort[first : first + count]))
                    busy[replacement] = self._request(replacement, round_index, cohort, block)
                    continue
                yield first, response, self._outputs.pop(ready).arrays
                if pending:
                    busy[ready] = self._request(ready, round_index, cohort, pending.pop())

    def _start(self, name: str) -> Connection:
        parent_end, worker_end = _SPAWN.Pipe()
        process = _SPAWN.Process(target=main, args=(worker_end, json.dumps(asdict(self._spec))), name=name, daemon=True)
        process.start()
        worker_end.close()
        self._processes[parent_end] = process
        return parent_end

    def _replace(self, lost: Connection) -> Connection:
        """Start a process in place of one that died, with the same shared memory for its sums."""
        process = self._processes.pop(lost)
        lost.close()
        if process.is_alive():  # it closed its connection but still runs, and must not change client states
            process.kill()
        process.join()
        replacement = self._start(process.name)
        self._outputs[replacement] = self._outputs.pop(lost)
        self._read(replacement)
        return replacement

    def _request(
        self, connection: Connection, round_index: int, cohort: Sequence[int], block: tuple[int, int]
    ) -> tuple[int, int]:
        assert self._state is not None
        assert self._sums is not None
        first, count = block
        output = self._outputs.get(connection) or self._sums.acquire()
        self._outputs[connection] = output
        request: dict[str, Any] = {"round": round_index, "saved_round": self._saved_round, "first": first}
        request |= {
            "clients": list(cohort[first : first + count]),
            "state": self._state.description(),
            "total": output.description(),
        }
        with suppress(OSError):  # a dead worker is noticed when its response is read
            connection.send_bytes(json.dumps(request).encode())
        return block

    def _read(self, connection: Connection) -> dict[str, Any]:
        try:
            response: dict[str, Any] = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            process = self._processes[connection]
            process.join(_STOP_SECONDS)
            raise _LostError(f"{process.name} of the simulation died ({_how(process.exitcode)})") from None
        if "error" in response:
            raise RunFailedError(f"{self._processes[connection].name} of the simulation: {response['error']}")
        return response

    def _share_state(self, down: NamedArrays, method: FederatedMethod) -> SharedSums:
        if self._state is None or self._sums is None:
            folder = Path(self._spec.client_state_dir).parent
            self._state = SharedArrays.like(down, folder)
            self._sums = SharedSums(method.contribution(down, Update(method.reply(down), 1, 1, 0.0)), folder)
        self._state.fill(down)
        return self._sums


def _how(exit_code: int | None) -> str:
    """Say how a process ended; the two signals that people meet, with their causes."""
    causes = {-signal.SIGBUS: "a full disk or shared memory", -signal.SIGKILL: "too little memory, or killed by hand"}
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    cause = f": {causes[exit_code]}" if exit_code in causes else ""
    return f"{signal.Signals(-exit_code).name}{cause}"


def _combine(responses: list[dict[str, Any]], total: NamedArrays | None) -> BlockResult:
    return BlockResult(
        total,
        [Reply(*reply) for response in responses for reply in response["replies"]],
        [Size(*size) for response in responses for size in response["sizes"]],
        {int(client): why for response in responses for client, why in response["missing"].items()},
    )
