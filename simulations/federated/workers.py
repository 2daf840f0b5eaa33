"""A population that worker processes play: the cohort is cut into nodes of its reduction tree, so any number of workers
gives the same bits. What a lost process had begun is taken back and played again by a new one.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType
from typing import Any

from ...core.errors import RunFailedError
from ...engines.federated.client_pool import Reply
from ...engines.federated.methods import FederatedMethod, Update
from ...engines.federated.tree import Part, TreeSum, blocks
from ..sizes import Size
from .client_runner import Block
from .shared_arrays import SharedArrays
from .shared_client_state import SharedClientStates
from .shared_sums import SharedSums
from .worker_process import WorkerSpec, main

_log = logging.getLogger(__name__)

_SPAWN = multiprocessing.get_context("spawn")
_STOP_SECONDS = 2.0

#: Processes that may be lost in one round before the run is given up.
_LOST_IN_A_ROUND = 3


class _LostError(RunFailedError):
    """A worker process is no more."""


class Workers:
    """Processes that hold one model each; a context manager.

    Parameters
    ----------
    cast : Cast
    count : int
        How many.
    memories : SharedMemories
        To take back what a lost process had begun.
    """

    def __init__(self, cast: WorkerSpec, count: int, memories: SharedClientStates) -> None:
        self._cast, self._count, self._memories = cast, count, memories
        self._processes: dict[Connection, BaseProcess] = {}
        self._state: SharedArrays | None = None
        self._totals: SharedSums | None = None
        self._places: dict[Connection, SharedArrays] = {}  # where each worker writes its sum to
        self._kept = 0

    def __enter__(self) -> Workers:
        for round_index in range(self._count):
            self._start(f"worker {round_index}")
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
        """Stop them all."""
        for connection in self._processes:
            connection.close()
        for process in self._processes.values():
            process.join(_STOP_SECONDS)
            if process.is_alive():
                process.kill()
                process.join()
        for shared in (self._totals, self._state):
            if shared is not None:
                shared.close()
        self._processes, self._places, self._totals, self._state = {}, {}, None, None

    def play(self, round_index: int, cohort: Sequence[int], down: Part, method: FederatedMethod) -> Block:
        """Round ``round_index`` for the whole cohort.

        Raises
        ------
        RunFailedError
            A worker's task raised, or workers died again and again.
        """
        totals = self._share(down, method)
        cut = blocks(len(cohort), len(self._processes), self._cast.together)
        level = (cut[0][1] - 1).bit_length()
        tree, done = TreeSum(len(cohort), release=totals.give), dict[int, dict[str, Any]]()
        for first, answer, total in self._answers(round_index, cohort, cut):
            done[first] = answer
            if answer["empty"]:
                tree.skip(first, level)
                totals.give(total)
            else:
                tree.add(first, total, level)
        if (root := tree.total()) is not None:
            totals.give(root)  # copied below, before anybody writes to it again
            root = {name: array.copy() for name, array in root.items()}
        return _joined([done[first] for first, _ in cut], root)

    def keep(self, round_index: int) -> None:
        """The checkpoint of round ``round_index`` was saved; workers hear of it with their next part."""
        self._kept = round_index

    def _answers(
        self, round_index: int, cohort: Sequence[int], cut: Sequence[tuple[int, int]]
    ) -> Iterator[tuple[int, dict[str, Any], Part]]:
        """Hand the blocks out, each to whoever is idle, and yield what comes back."""
        left, busy, lost = list(reversed(cut)), dict[Connection, tuple[int, int]](), 0
        for connection in self._processes:
            if left:
                busy[connection] = self._ask(connection, round_index, cohort, left.pop())
        while busy:
            for ready in wait(list(busy)):
                assert isinstance(ready, Connection)
                first, count = block = busy.pop(ready)
                try:
                    answer = self._read(ready)
                except _LostError as error:
                    lost += 1
                    if lost > _LOST_IN_A_ROUND:
                        raise RunFailedError(f"round {round_index}: workers die again and again: {error}") from None
                    _log.warning("round %d: %s; its clients are played again", round_index, error)
                    new = self._replace(ready)  # first: who is gone writes no memories any more
                    self._memories.restore(round_index - 1, set(cohort[first : first + count]))
                    busy[new] = self._ask(new, round_index, cohort, block)
                    continue
                yield first, answer, self._places.pop(ready).arrays
                if left:
                    busy[ready] = self._ask(ready, round_index, cohort, left.pop())

    def _start(self, name: str) -> Connection:
        mine, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=main, args=(theirs, json.dumps(asdict(self._cast))), name=name, daemon=True)
        process.start()
        theirs.close()
        self._processes[mine] = process
        return mine

    def _replace(self, lost: Connection) -> Connection:
        """A new process in the place of one that died; it writes its sums where that one did."""
        process = self._processes.pop(lost)
        lost.close()
        if process.is_alive():  # it closed its connection but hangs: it must not change memories any more
            process.kill()
        process.join()
        new = self._start(process.name)
        self._places[new] = self._places.pop(lost)
        self._read(new)
        return new

    def _ask(
        self, connection: Connection, round_index: int, cohort: Sequence[int], block: tuple[int, int]
    ) -> tuple[int, int]:
        assert self._state is not None
        assert self._totals is not None
        first, count = block
        place = self._places.get(connection) or self._totals.take()
        self._places[connection] = place
        asked: dict[str, Any] = {"round": round_index, "kept": self._kept, "first": first}
        asked |= {
            "clients": list(cohort[first : first + count]),
            "state": self._state.description(),
            "total": place.description(),
        }
        with suppress(OSError):  # whoever died is noticed where its answer is read
            connection.send_bytes(json.dumps(asked).encode())
        return block

    def _read(self, connection: Connection) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            process = self._processes[connection]
            process.join(_STOP_SECONDS)
            raise _LostError(f"{process.name} of the simulation died (exit code {process.exitcode})") from None
        if "error" in answer:
            raise RunFailedError(f"{self._processes[connection].name} of the simulation: {answer['error']}")
        return answer

    def _share(self, down: Part, method: FederatedMethod) -> SharedSums:
        if self._state is None or self._totals is None:
            self._state = SharedArrays.like(down)
            self._totals = SharedSums(method.contribution(down, Update(method.reply(down), 1, 1, 0.0)))
        self._state.fill(down)
        return self._totals


def _joined(answers: list[dict[str, Any]], total: Part | None) -> Block:
    return Block(
        total,
        [Reply(*reply) for answer in answers for reply in answer["replies"]],
        [Size(*size) for answer in answers for size in answer["sizes"]],
        {int(client): why for answer in answers for client, why in answer["missing"].items()},
    )
