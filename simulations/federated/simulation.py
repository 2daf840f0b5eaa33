"""A federated run on simulated clients: the server program's rounds, a fleet of numbers, and a run directory.

What it writes is what a real run writes: metrics, ledger, checkpoints, result. So the same reports read it, and a
killed simulation goes on from its last checkpoint.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

from pydantic import BaseModel

from ...core.errors import ConfigError, DataError, RunCancelledError
from ...core.message import Array, Message
from ...core.seeds import Seed
from ...core.session import Channel, Code, RunInfo, Workload
from ...core.version import Versions
from ...engines.federated.asynchronous import create_rounds
from ...engines.federated.client_pool import ClientPool, cohort
from ...engines.federated.codec import UpdateCodec
from ...engines.federated.config import FederatedConfig
from ...engines.federated.task import Task
from ...engines.federated.task_hooks import ReportingTask
from ...engines.federated.workload import FederatedWorkload, use_threads
from ...models.flat_params import FlatModel
from ...runs.directory import RunDirectory
from ...runs.history import read_history
from ...runs.ledger_reader import segments
from ...runs.traffic import Traffic
from ..clock import Devices
from .client_runner import ClientRunner
from .execution import choose
from .ray_workers import RayWorkers
from .shared_client_state import SharedClientStates
from .simulated_pool import SimulatedPool
from .simulated_traffic import Resumed
from .timing import Timing
from .worker_process import WorkerSpec
from .workers import Workers

OnProgress: TypeAlias = Callable[[int, int, Mapping[str, float | str]], None]


@dataclass
class Simulation:
    """One simulated run.

    Parameters
    ----------
    workload : Workload
        A federated method.
    config : BaseModel
        An instance of ``workload.config``.
    directory : Path
        Of the run; one that exists is resumed from its last checkpoint.
    clients : int
        How many there are.
    seed : int
        Root of the run's seed tree.
    data : Mapping[str, Path]
        Data sets by name.
    workers : int
        Processes that play the clients; 1 = this one.
    backend : str
        ``local``: this process, or processes of this machine; ``ray``: actors, on this machine or a cluster.
    address : str
        Of a Ray cluster; empty = Ray is started here. A cluster's machines must see ``directory`` and all data.
    devices : Devices, optional
        What the clients run on: then the run tells virtual time, and only who answers in time counts.
    on_progress : callable, optional
        Gets done, total and figures after each round.
    cancelled : threading.Event
        Set it, from any thread, to cancel the run.
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
        """Run to the end, or from where an earlier one stopped; returns the result.

        Raises
        ------
        ConfigError
            The method is no federated one, the devices do not let it draw whom it must, or the directory holds another
            run.
        FarshoreError
            Whatever the rounds raise.
        """
        workload = self.workload
        if not isinstance(workload, FederatedWorkload):
            raise ConfigError(f"'{workload.name}' is no federated method: it cannot be simulated with many clients")
        settings: Any = self.config
        self._check_draws(settings)
        run = self._open()
        if run.result is not None:
            return run.result
        use_threads(settings.threads)
        with ExitStack() as stack:
            session = stack.enter_context(_Session(self, run))
            task = workload.task(settings, session.run.seed, session.data, self.clients)
            for note in task.notes:
                session.log(note)
            fleet = self._fleet(stack, session, task)
            history = create_rounds(session, task, fleet, settings).run()
            fleet.finish()
            result = workload.outcome(settings, task, history)
        run.write_result(result)
        return result

    def _check_draws(self, settings: FederatedConfig) -> None:
        """Refuse devices that are off or surplus where clients work out by themselves who was drawn when."""
        if self.devices is None or not settings.requires_seeded_cohorts:
            return
        size = min(settings.per_round, self.clients)
        if not self.devices.clock(self.clients, Seed(self.seed)).draws_anybody(size):
            raise ConfigError(
                "lr_clock 'participation' counts the cohorts that seed and round draw; where devices are off at times "
                "(availability below 1) or more are drawn than count (over above 1), cohorts are others",
                hint="set lr_clock=rounds, or take devices with availability 1 and over 1",
            )

    def _open(self) -> RunDirectory:
        mine = {
            "workload": self.workload.name,
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "clients": self.clients,
        }
        if self.devices is not None:
            mine["devices"] = self.devices.resolved().model_dump(mode="json")
        if not (self.directory / "run.json").exists():
            return RunDirectory.create(
                self.directory, {"id": self.directory.name, **mine, "nodes": [], "simulated": True}
            )
        run = RunDirectory.open(self.directory)
        info = run.info
        mine["versions"] = asdict(Versions.here())
        differing = [name for name, value in mine.items() if info.get(name) != value]
        if differing:
            raise ConfigError(
                f"{self.directory} holds a run with another {' and another '.join(differing)}",
                hint="choose another directory",
            )
        return run

    def _together(self, session: _Session, task: Task, flat: FlatModel) -> int:
        """How many clients are trained at once; what was chosen once holds for all that the run is resumed."""
        settings = cast(FederatedConfig, self.config)
        run = RunDirectory.open(self.directory)
        if (known := run.info.get("execution")) is not None:
            return int(known["together"])
        clients = cohort(session.run.seed, 1, self.clients, min(settings.per_round, self.clients))
        chosen = choose(settings.execution, task, flat, clients)
        run.update(execution=asdict(chosen))
        if settings.execution != "sequential":
            session.log(chosen.told())
        return chosen.together

    def _fleet(self, stack: ExitStack, session: _Session, task: Task) -> ClientPool:
        flat = task.model()
        workload, settings = cast(FederatedWorkload[Any], self.workload), cast(Any, self.config)
        codec = workload.codec(settings, flat)
        briefing = workload.assets(settings, task, self.directory / "briefing", "the simulation")
        together = self._together(session, task, flat)
        memories = self.directory / "memories"
        mine = SharedClientStates(memories, self.clients, codec.client_state_sizes(task.method(flat), flat))
        mine.restore(session.resume_step or 0)  # what was trained after the checkpoint comes again
        if self.workers > 1 or self.backend == "ray":
            cast_ = WorkerSpec(
                self.workload.name,
                self.config.model_dump_json(),
                self.seed,
                {name: str(Path(path).resolve()) for name, path in self.data.items()},
                self.clients,
                str(memories.resolve()),
                str(briefing.save().resolve()) if briefing else "",
                together,
            )
            troupe: Any = stack.enter_context(
                RayWorkers(cast_, self.workers, self.address, mine)
                if self.backend == "ray"
                else Workers(cast_, self.workers, mine)
            )
        else:
            troupe = ClientRunner(task, codec, mine, settings.largest_norm, together)
        timing = self._timing(session, task, flat, codec) if self.devices is not None else None
        return SimulatedPool(troupe, self.clients, codec, session.counted.record, briefing, session.resumed(), timing)

    def _timing(self, session: _Session, task: Task, flat: FlatModel, codec: UpdateCodec) -> Timing:
        """The clock of the devices, which has to know how many steps a client takes."""
        assert self.devices is not None

        @lru_cache(maxsize=4096)
        def count(client: int, round_index: int) -> tuple[int, int, int]:
            work = task.work(flat, client, round_index)
            return work.samples, len(work.batches), len(work.full_batches)

        remembers = bool(codec.client_state_sizes(task.method(flat), flat))
        reports = task.reports if isinstance(task, ReportingTask) else ()
        return Timing(self.devices.clock(self.clients, session.run.seed), count, codec, remembers, reports)


class _Session:
    """What the rounds see of a simulated run; see :class:`~farshore.core.session.ServerSession`."""

    channels: Mapping[str, Channel] = {}

    def __init__(self, simulation: Simulation, directory: RunDirectory) -> None:
        self._simulation, self._directory = simulation, directory
        self._stack = ExitStack()
        self._checkpoints = directory.checkpoints  # one for all: it knows which files it has read whole
        self.steps = self._checkpoints.steps()
        self.resume_step = max(self.steps, default=None)
        name, seed = simulation.workload.name, Seed(simulation.seed)
        restarts = len(segments(directory.path))
        self.run = RunInfo(directory.path.name, name, seed, restarts, (), directory.path)

    def __enter__(self) -> _Session:
        self.ledger = self._stack.enter_context(self._directory.open_ledger())
        self.counted = Traffic(self.ledger.record)
        self._metrics = self._directory.open_metrics()
        self._stack.callback(self._metrics.close)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        self.ledger.flush()  # what a kill loses of the ledger must come again after a restart
        self._checkpoints.save(step, tensors, meta)

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        return self._checkpoints.load(step)

    def resumed(self) -> Resumed:
        """What the ledger has to know of a run that goes on."""
        history = read_history(self._directory.path, self.resume_step or 0)
        took_part = {client for entry in history for client in (*entry["cohort"], *map(int, entry["missing"]))}
        if self.resume_step is not None:  # clients that were sent a state by then, and have not answered
            took_part |= {client for client, *_ in self.load_checkpoint(self.resume_step)[1].get("under_way", ())}
        return Resumed(self.run.epoch, self.steps, frozenset(took_part))

    def admit(self, code: Code) -> None:
        """Whoever simulates on a machine runs what they chose."""

    def check_cancelled(self) -> None:
        if self._simulation.cancelled.is_set():
            raise RunCancelledError(f"run {self.run.id} was cancelled")

    def log(self, message: str) -> None:
        with self._directory.log.open("a", encoding="utf-8") as file:
            file.write(message + "\n")

    def data(self, name: str) -> Path:
        if name not in self._simulation.data:
            raise DataError(f"the simulation has no data set '{name}'", hint=f"give it one: --data {name}=PATH")
        return Path(self._simulation.data[name])

    def receive_any(self, nodes: Any = None, timeout: float | None = None) -> tuple[str, Message]:
        raise RuntimeError("simulated clients send no messages")

    def dismiss(self, node: str, reason: str) -> None:
        raise RuntimeError("there are no conversations with simulated clients")

    def readmit(self, least: int = 0) -> list[str]:
        return []

    def metrics(self, step: int, **values: float) -> None:
        self._metrics.write(step, values)

    def account(self, node: str, kind: str, step: int, size: int) -> None:
        """Virtual nodes send each other nothing."""

    def traffic(self) -> Mapping[str, int]:
        return self.counted.bytes()

    def progress(self, done: int, total: int, **values: float | str) -> None:
        if self._simulation.on_progress:
            self._simulation.on_progress(done, total, {**values, **self.counted.bytes()})
