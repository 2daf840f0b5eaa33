"""Trains simulated clients in Ray actors, on this machine or a cluster, with the same bits as the local backend.

Ray places the actors and detects lost ones. Actors live as long as the simulation and hold one model each. In each
round the state is put into Ray's object store once; each actor gets one call with its blocks of the cohort and returns
their sums.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from ...core.errors import ConfigError, MissingExtraError, RunFailedError
from ...engines.federated.client_pool import Reply
from ...engines.federated.methods import FederatedMethod
from ...engines.federated.tree import NamedArrays, TreeSum, blocks
from .client_runner import BlockResult, ClientRunner
from .shared_client_state import SharedClientStates
from .worker_process import WorkerSpec

_log = logging.getLogger(__name__)

#: Number of actors that may die in one round before the run fails.
_LOST_IN_A_ROUND = 3
_CONNECT_HINT = (
    "'ray start' requires a token by default: set RAY_AUTH_MODE=token, and copy ~/.ray/auth_token from the head to "
    "this machine; for a cluster without tokens set RAY_AUTH_MODE=disabled"
)


class Actor:
    """A client runner in a process of its own, created by Ray."""

    def __init__(self, spec_json: str) -> None:
        self._runner: ClientRunner = WorkerSpec(**json.loads(spec_json)).client_runner()
        self._saved_round = 0

    def ready(self) -> int:
        """Return the process id, once the runner has been built."""
        return os.getpid()

    def train(
        self, round_index: int, saved_round: int, assigned: Sequence[tuple[int, Sequence[int]]], state: NamedArrays
    ) -> list[tuple[int, BlockResult]]:
        """Train blocks of a cohort, each given by its first position and its clients."""
        if saved_round != self._saved_round:
            self._runner.checkpoint_saved(saved_round)
            self._saved_round = saved_round
        return [(first, self._runner.train_block(round_index, first, clients, state)) for first, clients in assigned]


class RayWorkers:
    """Ray actors with one model each; implements ClientExecutor. A context manager.

    Parameters
    ----------
    spec : WorkerSpec
        Its paths must be accessible on all machines of a cluster.
    count : int
        Number of actors, with one core each.
    address : str
        Address of a cluster; empty = start Ray on this machine, and stop it at the end.
    client_states : SharedClientStates
        Restored for the clients of an actor that died.
    """

    def __init__(self, spec: WorkerSpec, count: int, address: str, client_states: SharedClientStates) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise MissingExtraError("ray", "scale") from error
        self._ray: Any = ray
        self._spec_json, self._count, self._address, self._client_states = (
            json.dumps(asdict(spec)),
            count,
            address,
            client_states,
        )
        self._clients_at_once = spec.clients_at_once
        self._actors: list[Any] = []
        self._create_actor: Callable[[], Any]
        self._working_dir = tempfile.TemporaryDirectory(prefix="farshore-ray-")
        self._saved_round = 0
        self._started = False
        #: Numbers of samples of clients that took part before; used to balance the load.
        self._samples: dict[int, int] = {}

    def __enter__(self) -> RayWorkers:
        if not self._ray.is_initialized():
            try:
                # Ray gives its own processes half a minute, which is too little on a busy machine.
                os.environ.setdefault("RAY_raylet_start_wait_time_s", "180")
                self._ray.init(**self._init_options())
            except ConnectionError as error:
                raise ConfigError(
                    f"cannot connect to a Ray cluster at {self._address}: {_last_line(error)}", hint=_CONNECT_HINT
                ) from error
            self._started = True
        remote_class = self._ray.remote(num_cpus=1)(Actor)
        self._create_actor = lambda: remote_class.remote(self._spec_json)
        self._actors = [self._create_actor() for _ in range(self._count)]
        try:
            self._ray.get([actor.ready.remote() for actor in self._actors])
        except self._ray.exceptions.RayError as error:
            self.close()
            raise RunFailedError(f"an actor of the simulation failed to start: {_last_line(error)}") from None
        except BaseException:
            self.close()
            raise
        return self

    def _init_options(self) -> dict[str, Any]:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address:
            return {"address": self._address, **quiet}
        path = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path if folder)
        # Actors import the same packages as this process. Their working directory is empty, so that no file in the
        # current one shadows a package.
        runtime_env = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, "working_dir": self._working_dir.name}
        return {"num_cpus": self._count, "include_dashboard": False, "runtime_env": runtime_env, **quiet}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop all actors, and Ray if this object started it."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._started:
            self._ray.shutdown()
        self._working_dir.cleanup()

    def checkpoint_saved(self, round_index: int) -> None:
        """Note that round ``round_index`` has a checkpoint; actors receive it with their next call."""
        self._saved_round = round_index

    def train(self, round_index: int, cohort: Sequence[int], down: NamedArrays, method: FederatedMethod) -> BlockResult:
        """Train a whole cohort from the state ``down`` in round ``round_index``.

        Raises
        ------
        RunFailedError
            A task raised an error, or too many actors died.
        """
        cohort_blocks = blocks(len(cohort), self._count, self._clients_at_once)
        level = (cohort_blocks[0][1] - 1).bit_length()
        tree, done = TreeSum(len(cohort)), dict[int, BlockResult]()
        for first, result in self._results(round_index, cohort, cohort_blocks, self._ray.put(down)):
            done[first] = result
            if result.total is None:
                tree.skip(first, level)
            else:  # copied: Ray's arrays are read-only views of its object store
                tree.add(first, {name: array.copy() for name, array in result.total.items()}, level)
        results = [done[first] for first, _ in cohort_blocks]
        replies: list[Reply] = [reply for result in results for reply in result.replies]
        self._samples |= {reply.client: reply.samples for reply in replies}
        sizes = [size for result in results for size in result.sizes]
        missing = {client: why for result in results for client, why in result.missing.items()}
        return BlockResult(tree.total(), replies, sizes, missing)

    def _results(
        self, round_index: int, cohort: Sequence[int], cohort_blocks: Sequence[tuple[int, int]], state: Any
    ) -> Iterator[tuple[int, BlockResult]]:
        """Call each actor with its blocks and yield the results; a new actor trains the blocks of one that died."""
        assignments = balance(
            [(first, cohort[first : first + count]) for first, count in cohort_blocks], self._samples, self._count
        )
        lost = 0
        pending = {
            self._request(index, round_index, assigned, state): index
            for index, assigned in enumerate(assignments)
            if assigned
        }
        while pending:
            (ready, *_), _ = self._ray.wait(list(pending), num_returns=1)
            index = pending.pop(ready)
            try:
                yield from self._ray.get(ready)
            except self._ray.exceptions.RayActorError as error:
                lost += 1
                if lost > _LOST_IN_A_ROUND:
                    raise RunFailedError(f"round {round_index}: too many actors died: {_last_line(error)}") from None
                _log.warning(
                    "round %d: an actor died, its clients are trained again: %s", round_index, _last_line(error)
                )
                self._client_states.restore(
                    round_index - 1, {client for _, block in assignments[index] for client in block}
                )
                self._actors[index] = self._create_actor()
                pending[self._request(index, round_index, assignments[index], state)] = index
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise RunFailedError(f"an actor of the simulation: {type(cause).__name__}: {cause}") from None

    def _request(self, index: int, round_index: int, assigned: list[tuple[int, Sequence[int]]], state: Any) -> Any:
        return self._actors[index].train.remote(round_index, self._saved_round, assigned, state)


def balance(
    cohort_blocks: Sequence[tuple[int, Sequence[int]]], samples: dict[int, int], count: int
) -> list[list[tuple[int, Sequence[int]]]]:
    """Distribute blocks of a cohort over ``count`` actors: largest first, each to the actor with the smallest load.

    The load of a block is its number of samples; clients not in ``samples`` count as the mean.
    """
    mean = sum(samples.values()) / len(samples) if samples else 1.0
    weights = {first: sum(samples.get(client, mean) for client in clients) for first, clients in cohort_blocks}
    assignments: list[list[tuple[int, Sequence[int]]]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for block in sorted(cohort_blocks, key=lambda block: (-weights[block[0]], block[0])):
        index = loads.index(min(loads))
        assignments[index].append(block)
        loads[index] += weights[block[0]]
    return assignments


def _last_line(error: BaseException) -> str:
    """Return the last line of a Ray error, whose text is a traceback across several processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
