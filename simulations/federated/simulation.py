"""Runs a federated method on simulated clients, with the server program's rounds and a run directory.

The directory has the contents of a distributed run's: metrics, ledger, checkpoints and result. The same reports apply,
and an interrupted simulation resumes from its last checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from pydantic import BaseModel

from ...core.errors import ConfigError
from ...core.seeds import Seed
from ...core.session import Workload
from ...engines.assets.cache import AssetCache
from ...engines.federated.assets import Assets
from ...engines.federated.asynchronous import create_rounds
from ...engines.federated.client_pool import ClientPool, cohort
from ...engines.federated.client_training import CannotTrain, prepare
from ...engines.federated.codec import UpdateCodec
from ...engines.federated.compute import resident_model
from ...engines.federated.config import FederatedConfig
from ...engines.federated.task import Task
from ...engines.federated.task_hooks import ReportingTask
from ...engines.federated.workload import FederatedWorkload, use_threads
from ...models.flat_params import FlatModel
from ...runs.directory import RunDirectory
from ..clock import Devices
from ..origin import origin_of
from ..run_directories import open_or_create
from .client_runner import ClientRunner
from .execution import choose_execution
from .ray_workers import RayWorkers
from .shared_client_state import SharedClientStates
from .simulated_pool import SimulatedPool
from .simulated_session import SimulatedSession
from .timing import Timing
from .worker_process import WorkerSpec
from .workers import Workers

OnProgress: TypeAlias = Callable[[int, int, Mapping[str, float | str]], None]


@dataclass
class Simulation:
    """One simulated federated run.

    Parameters
    ----------
    workload : Workload
        A federated method.
    config : BaseModel
        An instance of ``workload.config``.
    directory : Path
        Run directory. An existing one is resumed from its last checkpoint.
    clients : int
        Number of clients in the population.
    seed : int
        Root of the run's seed tree.
    data : Mapping[str, Path]
        Paths of data sets by name.
    workers : int
        Number of processes that train the clients; 1 = the calling process.
    backend : str
        ``local``: the calling process or worker processes of this machine; ``ray``: Ray actors, on this machine or a
        cluster.
    address : str
        Address of a Ray cluster; empty = start Ray on this machine. All machines of a cluster need access to
        ``directory`` and to the data sets.
    devices : Devices, optional
        Devices of the clients. With them the run keeps virtual time, and replies that arrive too late are not used.
    on_progress : callable, optional
        Called with rounds done, rounds in total and the round's metrics after each round.
    cancelled : threading.Event
        Cancels the run when set; any thread may set it.
    """

    workload: Workload
    config: BaseModel
    directory: Path
    clients: int
    seed: int = 0
    data: Mapping[str, Path] = field(default_factory=dict)
    workers: int = 1
    backend: Literal["local", "ray"] = "local"
    address: str = ""
    devices: Devices | None = None
    on_progress: OnProgress | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> dict[str, Any]:
        """Run all rounds, or those after the last checkpoint, and return the result.

        The result of a finished run is read from its directory.

        Raises
        ------
        ConfigError
            The method is not federated, its settings need cohorts that the devices rule out, or the directory holds a
            run with other settings.
        FarshoreError
            A round failed.
        """
        workload = self.workload
        if not isinstance(workload, FederatedWorkload):
            raise ConfigError(f"only federated methods can be simulated; '{workload.name}' is not one")
        settings: Any = self.config
        self._check_participation_clock(settings)
        run = self._open()
        if run.result is not None:
            return run.result
        use_threads(settings.threads)
        with ExitStack() as stack:
            session = stack.enter_context(SimulatedSession(self, run))
            task = workload.task(settings, session.run.seed, session.data, self.clients)
            for note in task.notes:
                session.log(note)
            pool = self._client_pool(stack, session, task)
            history = create_rounds(session, task, pool, settings).run()
            pool.finish()
            result = workload.outcome(settings, task, history)
        run.write_result(result)
        return result

    def _check_participation_clock(self, settings: FederatedConfig) -> None:
        """Refuse devices that change the cohorts if clients derive past cohorts from seed and round alone."""
        if self.devices is None or not settings.requires_seeded_cohorts:
            return
        size = min(settings.per_round, self.clients)
        if not self.devices.clock(self.clients, Seed(self.seed)).cohort_is_time_independent(size):
            raise ConfigError(
                "lr_clock 'participation' needs cohorts that depend on seed and round only; these devices change them "
                "(availability below 1, or over above 1)",
                hint="set lr_clock=rounds, or use devices with availability 1 and over 1",
            )

    def _open(self) -> RunDirectory:
        info = {
            "workload": self.workload.name,
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "clients": self.clients,
        }
        if self.devices is not None:
            info["devices"] = self.devices.resolved().model_dump(mode="json")
        return open_or_create(self.directory, info, origin_of(self.workload, self.data))

    def _clients_at_once(self, session: SimulatedSession, task: Task, flat: FlatModel) -> int:
        """Number of clients trained at once: as recorded in the run directory, otherwise chosen and recorded now.

        A resumed run must use the same number: batched and sequential training differ in rounding.
        """
        settings = cast(FederatedConfig, self.config)
        run = RunDirectory.open(self.directory)
        if (recorded := run.info.get("execution")) is not None:
            return int(recorded["together"])
        clients = cohort(session.run.seed, 1, self.clients, min(settings.per_round, self.clients))
        execution = choose_execution(settings.execution, task, flat, clients)
        run.update(execution=asdict(execution))
        if settings.execution != "sequential":
            session.log(execution.log_line())
        return execution.together

    def _client_pool(self, stack: ExitStack, session: SimulatedSession, task: Task) -> ClientPool:
        workload, settings = cast(FederatedWorkload[Any], self.workload), cast(Any, self.config)
        flat = resident_model(task, settings)
        codec = workload.codec(settings, flat)
        assets = workload.assets(settings, task)
        clients_at_once = self._clients_at_once(session, task, flat)
        client_state_dir = self.directory / "memories"
        client_states = SharedClientStates(
            client_state_dir, self.clients, codec.client_state_sizes(task.method(flat), flat)
        )
        client_states.restore(session.resume_step or 0)  # rounds after the checkpoint are trained again
        if self.workers > 1 or self.backend == "ray":
            spec = WorkerSpec(
                self.workload.name,
                self.config.model_dump_json(),
                self.seed,
                {name: str(Path(path).resolve()) for name, path in self.data.items()},
                self.clients,
                str(client_state_dir.resolve()),
                *self._stored(assets),
                clients_at_once,
            )
            executor: Any = stack.enter_context(
                RayWorkers(spec, self.workers, self.address, client_states)
                if self.backend == "ray"
                else Workers(spec, self.workers, client_states)
            )
        else:
            executor = ClientRunner(task, codec, client_states, settings.largest_norm, clients_at_once, settings)
        timing = self._timing(session, task, flat, codec) if self.devices is not None else None
        return SimulatedPool(
            executor,
            self.clients,
            codec,
            session.traffic_counter.record,
            assets,
            session.resume_state(),
            timing,
            log=session.log,
        )

    def _stored(self, assets: Assets | None) -> tuple[str, list[dict[str, Any]]]:
        """Store the assets for worker processes; returns the folder and the fields of each asset."""
        cache, sources = AssetCache((self.directory / "assets").resolve()), assets.sources() if assets else ()
        for source in sources:
            cache.add(source.asset, source.read(0, source.asset.size))
        return str(cache.folder), [asdict(source.asset) for source in sources]

    def _timing(self, session: SimulatedSession, task: Task, flat: FlatModel, codec: UpdateCodec) -> Timing:
        """The devices' clock with each client's number of samples and steps."""
        assert self.devices is not None

        @lru_cache(maxsize=4096)
        def work_counts(client: int, round_index: int) -> tuple[int, int, int]:
            work = prepare(partial(task.work, flat, client, round_index))
            if isinstance(work, CannotTrain):
                return 0, 0, 0
            return work.samples, len(work.batches), len(work.full_batches)

        remembers = bool(codec.client_state_sizes(task.method(flat), flat))
        reports = task.reports if isinstance(task, ReportingTask) else ()
        return Timing(self.devices.clock(self.clients, session.run.seed), work_counts, codec, remembers, reports)
