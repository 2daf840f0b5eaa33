"""The server session of a simulated federated run, which has clients but no channels."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core.errors import DataError, RunCancelledError
from ...core.message import Array
from ...core.nodes import NodeInfo
from ...core.seeds import Seed
from ...core.session import Channel, Code, RecordStream, RunInfo
from ...runs.directory import RunDirectory
from ...runs.history import read_history
from ...runs.ledger_reader import segments
from ...runs.state_store import StateStore
from ...runs.traffic import Traffic
from .simulated_traffic import ResumeState

if TYPE_CHECKING:
    from .simulation import Simulation


class SimulatedSession:
    """Server session of a simulated run; implements :class:`~farshore.core.session.ServerSession`."""

    channels: Mapping[str, Channel] = {}
    nodes: Mapping[str, NodeInfo] = {}

    def __init__(self, simulation: Simulation, directory: RunDirectory) -> None:
        self._simulation, self._directory = simulation, directory
        self._stack = ExitStack()
        # One object: it caches which files are complete.
        self._state = StateStore(directory.checkpoints, directory.path / "streams")
        self.steps = self._state.steps()
        self.resume_step = max(self.steps, default=None)
        name, seed = simulation.workload.name, Seed(simulation.seed)
        restarts = len(segments(directory.path))
        self.run = RunInfo(directory.path.name, name, seed, restarts, (), directory.path)

    def __enter__(self) -> SimulatedSession:
        self.ledger = self._stack.enter_context(self._directory.open_ledger())
        self.traffic_counter = Traffic(self.ledger.record)
        self._metrics = self._directory.open_metrics()
        self._stack.callback(self._metrics.close)
        self._stack.callback(self._state.close)
        self._state.begin(self.resume_step)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        self.ledger.flush()  # the ledger must cover all rounds that a resumed run skips
        self._state.save(step, tensors, meta)

    def load_checkpoint(self, step: int) -> tuple[dict[str, Array], dict[str, Any]]:
        return self._state.load(step)

    def resume_state(self) -> ResumeState:
        """State of a resumed run that determines which frames its clients exchange."""
        history = read_history(self._directory.path, self.resume_step or 0)
        participants = {client for entry in history for client in (*entry["cohort"], *map(int, entry["missing"]))}
        if self.resume_step is not None:  # clients in training at the checkpoint
            participants |= {client for client, *_ in self.load_checkpoint(self.resume_step)[1].get("under_way", ())}
        return ResumeState(self.run.epoch, self.steps, frozenset(participants))

    def admit(self, code: Code) -> None:
        """Accept any code: it runs on the machine of the user who started the simulation."""

    def check_cancelled(self) -> None:
        if self._simulation.cancelled.is_set():
            raise RunCancelledError(f"run {self.run.id} was cancelled")

    def log(self, message: str) -> None:
        with self._directory.log.open("a", encoding="utf-8") as file:
            file.write(message + "\n")

    def data(self, name: str) -> Path:
        if name not in self._simulation.data:
            raise DataError(f"the simulation has no data set '{name}'", hint=f"pass its path: --data {name}=PATH")
        return Path(self._simulation.data[name])

    def append(self, stream: str, tensors: Mapping[str, Array]) -> int:
        return self._state.append(stream, tensors)

    def stream(self, name: str) -> RecordStream:
        return self._state.stream(name)

    def receive_any(self, nodes: Any = None, timeout: float | None = None, *, changes: bool = False) -> Any:
        raise RuntimeError("simulated clients send no messages")

    def dismiss(self, node: str, reason: str) -> None:
        raise RuntimeError("simulated clients have no channels")

    def readmit(self, least: int = 0) -> list[str]:
        return []

    def metrics(self, step: int, **values: float) -> None:
        self._metrics.write(step, values)

    def account(self, node: str, kind: str, step: int, size: int) -> None:
        """Do nothing: simulated clients do not exchange messages with each other."""

    def traffic(self) -> Mapping[str, int]:
        return self.traffic_counter.bytes()

    def progress(self, done: int, total: int, **values: float | str) -> None:
        if self._simulation.on_progress:
            self._simulation.on_progress(done, total, {**values, **self.traffic_counter.bytes()})
