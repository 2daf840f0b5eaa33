"""The run directory: everything that is known of one run, in files that need no server to be read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.errors import NotFoundError, StorageError
from ..core.version import Versions
from . import files, jsonl
from .checkpoints import CheckpointStore
from .events import EventsWriter, read_events
from .ledger import Ledger
from .ledger_reader import read_ledger
from .metrics import MetricsWriter, read_metrics
from .sinks import open_sinks

if TYPE_CHECKING:
    import pyarrow as pa

#: Bytes of failures.jsonl, and characters of an error and of a traceback in it.
_FAILURES, _ERROR, _TRACEBACK = 4 << 20, 2_000, 64_000
_NEEDED = ("id", "workload", "config", "seed", "nodes")


class RunDirectory:
    """One run on disk::

        run.json              id, workload, config, seed, nodes, versions, created (seconds since 1970)
        result.json           what the server program returned; absent until the run has finished
        metrics.jsonl         figures over steps: {"step", "time", name: number or null}
        node_metrics.jsonl    figures that node programs reported: {"node", "step", "time", name: number or null}
        rounds.jsonl          of a federated run: each round's cohort, who is missing and why, scores and bytes
        events.jsonl          what happened: {"time", "kind", …}
        failures.jsonl        what programs died of: {"time", "origin", "epoch", "error", "traceback"}
        ledger-0000.arrows    every transfer; one Arrow IPC stream per start of the run's process
        sockets.jsonl         what TCP carried: {"node", "epoch", "up", "down"} per data connection, if measured
        streams/              records that the server side appended: NAME.records
        checkpoints/          the server side's state: step-000000000120.safetensors, the two newest
        states/               of a federated run: best.safetensors and last.safetensors, for other programs to read
        log.txt               lines for people; older ones in log-000000000000.txt, by the place of their first byte

    Files appear when they are first written. Use :meth:`create` or :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path, info: Mapping[str, Any]) -> RunDirectory:
        """Make the directory of a new run.

        Parameters
        ----------
        path : Path
            Must not hold a run yet.
        info : Mapping
            ``id``, ``workload``, ``config`` (resolved, JSON-able), ``seed``, ``nodes``, and what else should be kept;
            ``versions`` and ``created`` are filled in unless given.

        Raises
        ------
        StorageError
            There is a run already, something of ``info`` is missing, or the disk refuses.
        """
        missing = [name for name in _NEEDED if name not in info]
        if missing:
            raise StorageError(f"cannot make the run directory {path}: it was not told {', '.join(missing)}")
        run = cls(path)
        if run._run_json.exists():
            raise StorageError(f"the directory {path} already holds a run", hint="choose another, or resume that run")
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(f"cannot make the run directory {path}", error) from error
        files.write_json(run._run_json, {"versions": asdict(Versions.local()), "created": time.time(), **info})
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """The directory of a run that exists.

        Raises
        ------
        NotFoundError
            There is none.
        StorageError
            Its ``run.json`` is damaged.
        """
        run = cls(path)
        if not run._run_json.is_file():
            raise NotFoundError(f"{path} is no run directory: it holds no run.json", hint="see 'farshore runs ls'")
        missing = [name for name in _NEEDED if name not in run.info]
        if missing:
            raise StorageError(f"{run._run_json} is damaged: it lacks {', '.join(missing)}")
        return run

    @property
    def _run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def info(self) -> dict[str, Any]:
        """What ``run.json`` holds.

        Raises
        ------
        NotFoundError, StorageError
            It is missing, or damaged.
        """
        return files.read_json(self._run_json)

    def update(self, **values: Any) -> None:
        """Change entries of ``run.json``, in one step.

        Raises
        ------
        StorageError
            The disk refuses; the old file is still there.
        """
        files.write_json(self._run_json, {**self.info, **values})

    @property
    def result(self) -> dict[str, Any] | None:
        """What the server program returned, or None while there is nothing."""
        path = self.path / "result.json"
        return files.read_json(path) if path.exists() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the run's result, in one step; a figure that is not finite is written as ``null``.

        Raises
        ------
        StorageError
            The disk refuses, or the result is not JSON-able.
        """
        files.write_json(self.path / "result.json", jsonl.finite(result))

    @property
    def log(self) -> Path:
        """``log.txt``."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> CheckpointStore:
        """The server side's checkpoints."""
        return CheckpointStore(self.path / "checkpoints")

    def open_ledger(self, block_rows: int = 4096, flush_seconds: float = 1.0) -> Ledger:
        """Begin the next segment of the ledger; see :class:`~farshore.runs.ledger.Ledger`."""
        return Ledger(self.path, block_rows, flush_seconds)

    def read_ledger(self) -> pa.Table:
        """All transfers; see :func:`~farshore.runs.ledger_reader.read_ledger`."""
        return read_ledger(self.path)

    def add_sockets(self, node: str, epoch: int, up: int, down: int) -> None:
        """Append to ``sockets.jsonl`` what one data connection of a node carried, in bytes.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        with jsonl.JsonLines(self.path / "sockets.jsonl") as lines:
            lines.append({"node": node, "epoch": epoch, "up": up, "down": down})

    def socket_bytes(self) -> dict[str, int]:
        """Bytes on the sockets, by ``up`` and ``down``; empty where nobody measured."""
        rows = list(jsonl.read(self.path / "sockets.jsonl"))
        return {way: sum(int(row[way]) for row in rows) for way in ("up", "down")} if rows else {}

    def open_metrics(self, sinks: Sequence[str] = ()) -> MetricsWriter:
        """Append to ``metrics.jsonl``, and write to the named :mod:`~farshore.runs.sinks`.

        Raises
        ------
        ConfigError, MissingExtraError
            There is no such sink, or it cannot be used here.
        StorageError
            The disk refuses.
        """
        return MetricsWriter(self.path / "metrics.jsonl", open_sinks(sinks, self) if sinks else None)

    def add_failure(self, origin: str, epoch: int, error: str, traceback: str) -> None:
        """Append to ``failures.jsonl`` what a program died of; a long traceback is cut, a file of 4 MiB takes no more.

        Parameters
        ----------
        origin : str
            A node's name, or ``run``.
        epoch : int
        error : str
            One line.
        traceback : str
            Empty where there is none.

        Raises
        ------
        StorageError
            The disk refuses.
        """
        path = self.path / "failures.jsonl"
        if path.exists() and path.stat().st_size > _FAILURES:
            return
        told = {"error": error[:_ERROR], "traceback": traceback[-_TRACEBACK:]}
        with jsonl.JsonLines(path) as lines:
            lines.append({"time": time.time(), "origin": origin, "epoch": epoch, **told})

    def read_failures(self) -> Iterator[dict[str, Any]]:
        """The lines of ``failures.jsonl``, oldest first."""
        return jsonl.read(self.path / "failures.jsonl")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of ``metrics.jsonl``."""
        return read_metrics(self.path / "metrics.jsonl")

    def read_node_metrics(self) -> Iterator[dict[str, Any]]:
        """The lines of ``node_metrics.jsonl``."""
        return jsonl.read(self.path / "node_metrics.jsonl")

    def open_events(self) -> EventsWriter:
        """Append to ``events.jsonl``."""
        return EventsWriter(self.path / "events.jsonl")

    def read_events(self) -> Iterator[dict[str, Any]]:
        """The lines of ``events.jsonl``."""
        return read_events(self.path / "events.jsonl")
