"""The worker process of a simulation: trains blocks of a cohort as its parent process requests them."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from ...core.errors import ConfigError, DataError
from ...core.seeds import Seed
from ...core.workloads import load_local
from ...engines.assets.asset import Asset
from ...engines.assets.cache import AssetCache
from ...engines.federated.assets import Assets
from ...wire.allocator import keep_freed_memory
from .client_runner import ClientRunner
from .shared_arrays import SharedArrays
from .shared_client_state import SharedClientStates


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """Settings from which a worker builds its task and model; can be serialized to JSON.

    Attributes
    ----------
    workload, config_json : str
        Name of the method and its configuration.
    seed : int
        Root of the run's seed tree.
    data : dict
        Paths of data sets by name.
    population : int
        Number of clients.
    client_state_dir : str
        Directory of the client states.
    asset_dir : str
        Folder of the assets that clients need before their first round.
    assets : list of dict
        Fields of each of these :class:`~farshore.engines.assets.asset.Asset`; they are in the folder.
    clients_at_once : int
        Number of clients trained at once; the same in all workers.
    """

    workload: str
    config_json: str
    seed: int
    data: dict[str, str]
    population: int
    client_state_dir: str
    asset_dir: str = ""
    assets: list[dict[str, Any]] = field(default_factory=list)
    clients_at_once: int = 1

    def data_finder(self) -> Callable[[str], Path]:
        """Return a function that finds a data set's path by name."""

        def path(name: str) -> Path:
            if name not in self.data:
                raise DataError(f"the simulation has no data set '{name}'", hint=f"pass its path: --data {name}=PATH")
            return Path(self.data[name])

        return path

    def client_runner(self) -> ClientRunner:
        """Build a client runner with a model of its own."""
        from ...engines.federated.workload import FederatedWorkload, use_threads

        workload = load_local(self.workload)
        if not isinstance(workload, FederatedWorkload):
            raise ConfigError(f"only federated methods can be simulated; '{self.workload}' is not one")
        config: Any = workload.config.model_validate_json(self.config_json)
        use_threads(config.threads)
        task = workload.task(config, Seed(self.seed), self.data_finder(), self.population)
        self._use_assets(workload.assets(config, task))
        flat = task.model()
        codec = workload.codec(config, flat)
        lengths = codec.client_state_sizes(task.method(flat), flat)
        client_states = SharedClientStates(Path(self.client_state_dir), self.population, lengths)
        return ClientRunner(task, codec, client_states, config.largest_norm, self.clients_at_once, config)

    def _use_assets(self, assets: Assets | None) -> None:
        """Use the stored assets, which all workers map into their memory."""
        cache = AssetCache(Path(self.asset_dir))
        for asset in (Asset(**fields) for fields in self.assets):
            if assets is None or not assets.use(asset, cache):
                raise DataError(f"'{asset.name}' is missing or damaged in {cache.folder}", hint="start again")


def main(connection: Connection, spec_json: str) -> None:
    """Train the requested blocks until the parent closes the connection."""
    keep_freed_memory()
    spec = WorkerSpec(**json.loads(spec_json))
    opened: dict[str, SharedArrays] = {}
    saved_round = 0
    try:
        runner = spec.client_runner()
        connection.send_bytes(b'{"ready": true}')
        while True:
            request = json.loads(connection.recv_bytes())
            if request["saved_round"] != saved_round:
                saved_round = request["saved_round"]
                runner.checkpoint_saved(saved_round)
            state, total = (_open(opened, request[key]) for key in ("state", "total"))
            connection.send_bytes(json.dumps(_train(runner, request, state, total)).encode())
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass  # the simulation has ended or died
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


def _train(runner: ClientRunner, request: dict[str, Any], state: SharedArrays, total: SharedArrays) -> dict[str, Any]:
    result = runner.train_block(request["round"], request["first"], request["clients"], state.arrays, total.arrays)
    if result.total is not None:
        total.fill(result.total)
    return {
        "empty": result.total is None,
        "replies": [(r.client, r.samples, r.steps, r.loss, r.metrics) for r in result.replies],
        "sizes": result.sizes,
        "missing": {str(client): why for client, why in result.missing.items()},
    }
