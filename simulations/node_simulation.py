"""Runs any workload's programs on virtual nodes, with a run directory.

The directory has the contents of a distributed run's: metrics, ledger, checkpoints and result. The same reports apply,
and an interrupted simulation resumes from the newest checkpoint that its programs have in common.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from ..core.errors import ConfigError
from ..core.json_text import to_json
from ..core.message import Array
from ..core.seeds import Seed
from ..core.session import Workload
from ..engines.work_queue.workload import WorkQueueWorkload
from ..runs import jsonl
from ..runs.checkpoints import CheckpointStore
from ..runs.directory import RunDirectory
from ..runs.ledger import Ledger
from ..runs.ledger_reader import segments
from ..runs.state_store import StateStore
from .clock import Devices
from .in_process import InProcessRun, OnProgress
from .origin import origin_of
from .run_directories import open_or_create
from .virtual_network import SERVER, VirtualNetwork

#: File of the clocks at checkpoints.
_CLOCKS = "clocks.jsonl"


@dataclass
class NodeSimulation:
    """One simulated run of any workload whose node programs may be threads of this process.

    Parameters
    ----------
    workload : Workload
    config : BaseModel
        An instance of ``workload.config``.
    directory : Path
        Run directory. An existing one is resumed.
    nodes : Mapping[str, str]
        Names of the nodes, in cohort order, and their roles.
    seed : int
        Root of the run's seed tree.
    data : Mapping[str, Path]
        Paths of data sets by name, the same for all programs.
    devices : Devices, optional
        Devices of the nodes. With them the run keeps virtual time.
    on_progress : callable, optional
        Called with what the server program reports.
    cancelled : threading.Event
        Cancels the run when set; any thread may set it.
    """

    workload: Workload
    config: BaseModel
    directory: Path
    nodes: Mapping[str, str]
    seed: int = 0
    data: Mapping[str, Path] = field(default_factory=dict)
    devices: Devices | None = None
    on_progress: OnProgress | None = None
    cancelled: threading.Event = field(default_factory=threading.Event)

    def run(self) -> dict[str, Any]:
        """Run to the end, or from the newest common checkpoint, and return the result.

        The result of a finished run is read from its directory. With devices it has the virtual times of the run, as
        ``simulated_time``.

        Raises
        ------
        ConfigError
            The directory holds a run with other settings, or the method is a work queue and there are devices.
        FarshoreError
            A program failed.
        """
        if self.devices and isinstance(self.workload, WorkQueueWorkload):
            raise ConfigError(
                f"'{self.workload.name}' has no simulated time: its items are dealt by the time that they take here",
                hint="leave out the devices",
            )
        run = open_or_create(self.directory, self._info(), origin_of(self.workload, self.data))
        if run.result is not None:
            return run.result
        network = VirtualNetwork(self.devices, tuple(self.nodes), Seed(self.seed)) if self.devices else None
        with ExitStack() as stack:
            epoch = len(segments(run.path))
            ledger = stack.enter_context(run.open_ledger())
            metrics = run.open_metrics()
            stack.callback(metrics.close)
            log = stack.enter_context(run.log.open("a", encoding="utf-8", buffering=1))
            states = _States(run, ledger, network)
            result = InProcessRun(
                self.workload,
                self.config,
                run.path,
                tuple(self.nodes),
                self.seed,
                self.data,
                self.nodes,
                recorder=ledger.record,
                on_progress=self.on_progress,
                on_metrics=metrics.write,
                on_node_metrics=metrics.write_node,
                on_log=lambda line: _write_line(log, line),
                cancelled=self.cancelled,
                epoch=epoch,
                state=states.of,
                network=network,
            ).run()
        if network is not None:
            result = {**result, "simulated_time": network.summary()}
        run.write_result(result)
        return result

    def _info(self) -> dict[str, Any]:
        info: dict[str, Any] = {
            "workload": self.workload.name,
            "config": self.config.model_dump(mode="json"),
            "seed": self.seed,
            "nodes": list(self.nodes),
            "roles": dict(self.nodes),
        }
        if self.devices is not None:
            info["devices"] = self.devices.resolved().model_dump(mode="json")
        return info


class _States:
    """The state stores of a run's programs."""

    def __init__(self, run: RunDirectory, ledger: Ledger, network: VirtualNetwork | None) -> None:
        self._run, self._ledger, self._network = run, ledger, network
        self._clocks = run.path / _CLOCKS
        self._lock = threading.Lock()

    def of(self, program: str) -> StateStore:
        """Return the store of ``server``, which is that of the run directory, or of a node."""
        if program == SERVER:
            return _State(self, program, self._run.checkpoints, self._run.path / "streams")
        folder = self._run.path / "node-states" / program
        return _State(self, program, CheckpointStore(folder), folder / "streams")

    def saved(self, program: str, step: int) -> None:
        """Note that a program saves a checkpoint."""
        self._ledger.flush()  # the ledger must cover all steps that a resumed run skips
        if self._network is not None:
            line = {"program": program, "step": step, **self._network.snapshot(program)}
            with self._lock, self._clocks.open("a", encoding="utf-8") as file:
                file.write(to_json(line) + "\n")

    def begins(self, program: str, step: int | None) -> None:
        """Note that a program begins from a checkpoint, or from the start for None."""
        if self._network is None or step is None or not self._clocks.exists():
            return
        lines = [line for line in jsonl.read(self._clocks) if (line["program"], line["step"]) == (program, step)]
        if lines:
            self._network.restore(program, lines[-1])


class _State(StateStore):
    """A program's state, whose checkpoints remember its clock."""

    def __init__(self, states: _States, program: str, checkpoints: CheckpointStore, streams: Path) -> None:
        super().__init__(checkpoints, streams)
        self._states, self._program = states, program

    def save(self, step: int, tensors: Mapping[str, Array], meta: Mapping[str, Any]) -> None:
        self._states.saved(self._program, step)
        super().save(step, tensors, meta)

    def begin(self, step: int | None) -> None:
        super().begin(step)
        self._states.begins(self._program, step)


def _write_line(file: Any, line: str) -> None:
    file.write(line + "\n")
