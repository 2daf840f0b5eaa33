"""A worker of a simulation: a process that plays the parts of a cohort that it is given, one after another."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, DataError
from ...core.seeds import Seed
from ...core.workloads import load_local
from ...wire.allocator import keep_freed_memory
from .client_runner import ClientRunner
from .shared_arrays import SharedArrays
from .shared_client_state import SharedClientStates


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What every worker makes its task from; JSON-able.

    Attributes
    ----------
    workload, config_json : str
    seed : int
        Root of the run's seed tree.
    data : dict
        Paths of data sets by name.
    population : int
    memories : str
        Folder of the clients' memories.
    held : str
        File of what every client must hold before its first round; empty = nothing, or each worker makes its own.
    together : int
        Clients that are trained at once; the same in all workers.
    """

    workload: str
    config_json: str
    seed: int
    data: dict[str, str]
    population: int
    memories: str
    held: str = ""
    together: int = 1

    def find(self) -> Callable[[str], Path]:
        """Gives a data set's path by name."""

        def path(name: str) -> Path:
            if name not in self.data:
                raise DataError(f"the simulation has no data set '{name}'", hint=f"give it one: --data {name}=PATH")
            return Path(self.data[name])

        return path

    def player(self) -> ClientRunner:
        """A player with a model of its own."""
        from ...engines.federated.workload import FederatedWorkload, use_threads

        workload = load_local(self.workload)
        if not isinstance(workload, FederatedWorkload):
            raise ConfigError(f"'{self.workload}' is no federated method: it cannot be simulated with many clients")
        config: Any = workload.config.model_validate_json(self.config_json)
        use_threads(config.threads)
        task = workload.task(config, Seed(self.seed), self.find(), self.population)
        held = Path(self.held)
        if self.held and (briefing := workload.assets(config, task, held.parent, "a worker of the simulation")):
            briefing.load(held)
        flat = task.model()
        codec = workload.codec(config, flat)
        kept = codec.client_state_sizes(task.method(flat), flat)
        mine = SharedClientStates(Path(self.memories), self.population, kept)
        return ClientRunner(task, codec, mine, config.largest_norm, self.together)


def main(connection: Connection, cast_json: str) -> None:
    """Play until the other end closes the connection."""
    keep_freed_memory()
    cast = WorkerSpec(**json.loads(cast_json))
    opened: dict[str, SharedArrays] = {}
    kept = 0
    try:
        player = cast.player()
        connection.send_bytes(b'{"ready": true}')
        while True:
            asked = json.loads(connection.recv_bytes())
            if asked["kept"] != kept:
                kept = asked["kept"]
                player.keep(kept)
            state, total = (_open(opened, asked[which]) for which in ("state", "total"))
            connection.send_bytes(json.dumps(_play(player, asked, state, total)).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the simulation is over, or dead
    except Exception as error:
        with suppress(OSError):
            connection.send_bytes(json.dumps({"error": f"{type(error).__name__}: {error}"}).encode())
    finally:
        for arrays in opened.values():
            arrays.close()


def _open(opened: dict[str, SharedArrays], description: dict[str, Any]) -> SharedArrays:
    name = description["memory"]
    if name not in opened:
        opened[name] = SharedArrays.open(description)
    return opened[name]


def _play(player: ClientRunner, asked: dict[str, Any], state: SharedArrays, total: SharedArrays) -> dict[str, Any]:
    block = player.play_part(asked["round"], asked["first"], asked["clients"], state.arrays, total.arrays)
    if block.total is not None:
        total.fill(block.total)
    return {
        "empty": block.total is None,
        "replies": [(r.client, r.samples, r.steps, r.loss, r.figures) for r in block.replies],
        "sizes": block.sizes,
        "missing": {str(client): why for client, why in block.missing.items()},
    }
