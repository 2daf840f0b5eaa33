"""Runs a method in one process, with faults, and keeps what the suite compares: result, states, metrics and ledger."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from safetensors.numpy import load_file

from farshore.core.transfer import Direction, Transfer
from farshore.runs.traffic import CHANNEL_KINDS
from farshore.simulations.in_process import InProcessRun

from .small_runs import SEED, SmallRun

Arrays: TypeAlias = dict[str, np.ndarray[Any, Any]]
Frames: TypeAlias = Counter[tuple[Any, ...]]

#: What identifies a frame in the ledger: all but its time, restart epoch and number within the step.
COLUMNS = ("node", "direction", "kind", "encoding", "round", "step", "dense_bytes", "payload_bytes")
#: Names of metrics that are times or rates.
_MEASURED = re.compile(r"seconds|_ms$|_per_second$")


@dataclass
class Recorded:
    """What a run left behind."""

    directory: Path
    result: dict[str, Any] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    rows: list[Transfer] = field(default_factory=list)
    progress: list[tuple[int, int]] = field(default_factory=list)

    @property
    def own_rows(self) -> list[Transfer]:
        """Rows of the programs' own messages."""
        return [row for row in self.rows if row.kind not in CHANNEL_KINDS]

    @property
    def frames(self) -> Frames:
        """The programs' own messages, as :data:`COLUMNS` say; their order depends on the threads."""
        return frames_of(map(asdict, self.rows))

    @property
    def states(self) -> Arrays:
        """Every array of the newest checkpoints and of the models that the programs saved."""
        places = {path.name: path for path in self.directory.iterdir() if path.is_dir() and path.name != "states"}
        return read_states(self.directory, places)


def frames_of(rows: Iterable[Mapping[str, Any]]) -> Frames:
    """Count the frames of programs in ledger rows."""
    return Counter(tuple(row[name] for name in COLUMNS) for row in rows if row["kind"] not in CHANNEL_KINDS)


def read_states(directory: Path, checkpoints: Mapping[str, Path]) -> Arrays:
    """Read the models in a run's directory, and the newest checkpoint of each program.

    Parameters
    ----------
    directory : Path
    checkpoints : Mapping
        Folders of checkpoints by program.

    Returns
    -------
    dict
        Keys are ``PROGRAM/FILE/NAME``, without a program for models.
    """
    files = {f"{path.name}/": path for path in (*directory.glob("states/*.safetensors"), *directory.glob("*.npz"))}
    for program, folder in checkpoints.items():
        files |= {f"{program}/{path.name}/": path for path in sorted(folder.glob("step-*.safetensors"))[-1:]}
    return {
        key + name: array
        for key, path in files.items()
        for name, array in (dict(np.load(path)) if path.suffix == ".npz" else load_file(path)).items()
    }


def differing(one: Arrays, other: Arrays) -> list[str]:
    """Names of the arrays that are not equal bit for bit."""
    return [
        name
        for name in sorted(one.keys() | other.keys())
        if name not in one or name not in other or one[name].tobytes() != other[name].tobytes()
    ]


@dataclass
class AtFrame:
    """Acts once, in the thread that sends the frame with a number.

    Attributes
    ----------
    number : int
        Of the frame, from 0, among those of a direction.
    act : callable
        Called with the name of the frame's node.
    """

    direction: Direction
    number: int
    act: Callable[[str], None]
    _seen: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, row: Transfer) -> None:
        """Record a frame."""
        if row.direction != self.direction or row.kind in CHANNEL_KINDS:
            return
        with self._lock:
            due = self._seen == self.number
            self._seen += 1
        if due:
            self.act(row.node)


class Recorder:
    """Runs a method in process, in a directory of its own.

    Parameters
    ----------
    name : str
        Of the method.
    small : SmallRun
    data : Mapping
        Paths of data sets by name.
    directory : Path
    """

    def __init__(self, name: str, small: SmallRun, data: Mapping[str, Path], directory: Path) -> None:
        self.recorded = Recorded(directory)
        workload = small.workload(name)
        self.run = InProcessRun(
            workload,
            small.config(workload),
            directory,
            small.node_names,
            SEED,
            data,
            recorder=self._record,
            on_progress=lambda done, total, values: self.recorded.progress.append((done, total)),
            on_metrics=self._metrics,
        )
        self._fault: AtFrame | None = None

    def at_frame(self, direction: Direction, number: int, act: Callable[[str], None]) -> Recorder:
        """Inject a fault; see :class:`AtFrame`."""
        self._fault = AtFrame(direction, number, act)
        return self

    def finish(self) -> Recorded:
        """Run to the end."""
        self.recorded.result = self.run.run()
        return self.recorded

    def _record(self, row: Transfer) -> None:
        self.recorded.rows.append(row)
        if self._fault is not None:
            self._fault(row)

    def _metrics(self, step: int, values: dict[str, float]) -> None:
        mine = {name: value for name, value in values.items() if not _MEASURED.search(name)}
        self.recorded.metrics.setdefault(step, {}).update(mine)
