"""A population that Ray actors play, on this machine or a cluster, with the bits of any other backend.

Ray places the actors and notices when one is lost; the rest is as with local workers: long-lived actors with one model
each, one object for the state of a round, one call per actor and round with parts of the cohort, and sums back.
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
from ...engines.federated.tree import Part, TreeSum, blocks
from .client_runner import Block, ClientRunner
from .shared_client_state import SharedClientStates
from .worker_process import WorkerSpec

_log = logging.getLogger(__name__)

#: Actors that may be lost in one round before the run is given up.
_LOST_IN_A_ROUND = 3


class Actor:
    """One player; made by Ray in a process of its own."""

    def __init__(self, cast_json: str) -> None:
        self._player: ClientRunner = WorkerSpec(**json.loads(cast_json)).player()
        self._kept = 0

    def ready(self) -> int:
        """The process's number."""
        return os.getpid()

    def play(
        self, round_index: int, kept: int, share: Sequence[tuple[int, Sequence[int]]], state: Part
    ) -> list[tuple[int, Block]]:
        """Play blocks of a cohort, each given by its first position and its clients."""
        if kept != self._kept:
            self._player.keep(kept)
            self._kept = kept
        return [(first, self._player.play_part(round_index, first, clients, state)) for first, clients in share]


class RayWorkers:
    """Actors that hold one model each; a context manager.

    Parameters
    ----------
    cast : Cast
        With paths that all machines of a cluster see.
    count : int
        Actors, one core each.
    address : str
        Of a cluster; empty = Ray is started here, and stopped again.
    memories : SharedMemories
        To take back what a lost actor had begun.
    """

    def __init__(self, cast: WorkerSpec, count: int, address: str, memories: SharedClientStates) -> None:
        try:
            import ray
        except ModuleNotFoundError as error:
            raise MissingExtraError("ray", "scale") from error
        self._ray: Any = ray
        self._cast, self._count, self._address, self._memories = json.dumps(asdict(cast)), count, address, memories
        self._together = cast.together
        self._actors: list[Any] = []
        self._make: Callable[[], Any]
        self._empty = tempfile.TemporaryDirectory(prefix="farshore-ray-")
        self._kept = 0
        self._started = False
        #: Samples of clients that took part already: long ones are begun first.
        self._samples: dict[int, int] = {}

    def __enter__(self) -> RayWorkers:
        if not self._ray.is_initialized():
            try:
                self._ray.init(**self._where())
            except ConnectionError as error:
                raise ConfigError(f"no Ray cluster answers at {self._address}: {error}") from error
            self._started = True
        make = self._ray.remote(num_cpus=1)(Actor)
        self._make = lambda: make.remote(self._cast)
        self._actors = [self._make() for _ in range(self._count)]
        try:
            self._ray.get([actor.ready.remote() for actor in self._actors])
        except self._ray.exceptions.RayError as error:
            self.close()
            raise RunFailedError(f"an actor of the simulation: {_cause(error)}") from None
        except BaseException:
            self.close()
            raise
        return self

    def _where(self) -> dict[str, Any]:
        quiet = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self._address:
            return {"address": self._address, **quiet}
        path = os.pathsep.join(str(Path(folder).resolve()) for folder in sys.path if folder)
        # Actors import what this process does; from a folder of their own, lest the present one hides it.
        here = {"env_vars": {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}, "working_dir": self._empty.name}
        return {"num_cpus": self._count, "include_dashboard": False, "runtime_env": here, **quiet}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop them all, and Ray if it was started here."""
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._started:
            self._ray.shutdown()
        self._empty.cleanup()

    def keep(self, round_index: int) -> None:
        """The checkpoint of round ``round_index`` was saved; actors hear of it with their next share."""
        self._kept = round_index

    def play(self, round_index: int, cohort: Sequence[int], down: Part, method: FederatedMethod) -> Block:
        """Round ``round_index`` for the whole cohort.

        Raises
        ------
        RunFailedError
            A task raised, or actors died again and again.
        """
        cut = blocks(len(cohort), self._count, self._together)
        level = (cut[0][1] - 1).bit_length()
        tree, done = TreeSum(len(cohort)), dict[int, Block]()
        for first, block in self._answers(round_index, cohort, cut, self._ray.put(down)):
            done[first] = block
            if block.total is None:
                tree.skip(first, level)
            else:  # Ray's arrays are read-only views of its store
                tree.add(first, {name: array.copy() for name, array in block.total.items()}, level)
        answers = [done[first] for first, _ in cut]
        replies: list[Reply] = [reply for block in answers for reply in block.replies]
        self._samples |= {reply.client: reply.samples for reply in replies}
        sizes = [size for block in answers for size in block.sizes]
        missing = {client: why for block in answers for client, why in block.missing.items()}
        return Block(tree.total(), replies, sizes, missing)

    def _answers(
        self, round_index: int, cohort: Sequence[int], cut: Sequence[tuple[int, int]], state: Any
    ) -> Iterator[tuple[int, Block]]:
        """One call per actor; what a lost actor had is played by a new one."""
        shares = packed([(first, cohort[first : first + count]) for first, count in cut], self._samples, self._count)
        lost = 0
        asked = {self._ask(place, round_index, share, state): place for place, share in enumerate(shares) if share}
        while asked:
            (ready, *_), _ = self._ray.wait(list(asked), num_returns=1)
            place = asked.pop(ready)
            try:
                yield from self._ray.get(ready)
            except self._ray.exceptions.RayActorError as error:
                lost += 1
                if lost > _LOST_IN_A_ROUND:
                    raise RunFailedError(f"round {round_index}: actors die again and again: {_cause(error)}") from None
                _log.warning(
                    "round %d: an actor was lost, its clients are played again: %s", round_index, _cause(error)
                )
                self._memories.restore(round_index - 1, {client for _, part in shares[place] for client in part})
                self._actors[place] = self._make()
                asked[self._ask(place, round_index, shares[place], state)] = place
            except self._ray.exceptions.RayTaskError as error:
                cause = error.cause
                raise RunFailedError(f"an actor of the simulation: {type(cause).__name__}: {cause}") from None

    def _ask(self, place: int, round_index: int, share: list[tuple[int, Sequence[int]]], state: Any) -> Any:
        return self._actors[place].play.remote(round_index, self._kept, share, state)


def packed(
    parts: Sequence[tuple[int, Sequence[int]]], samples: dict[int, int], count: int
) -> list[list[tuple[int, Sequence[int]]]]:
    """Parts of a cohort for ``count`` players: the longest first, each to whoever has least so far."""
    usual = sum(samples.values()) / len(samples) if samples else 1.0
    weights = {first: sum(samples.get(client, usual) for client in clients) for first, clients in parts}
    shares: list[list[tuple[int, Sequence[int]]]] = [[] for _ in range(count)]
    loads = [0.0] * count
    for part in sorted(parts, key=lambda part: (-weights[part[0]], part[0])):
        place = loads.index(min(loads))
        shares[place].append(part)
        loads[place] += weights[part[0]]
    return shares


def _cause(error: BaseException) -> str:
    """The end of Ray's text, which is a traceback of several processes."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
