"""The run directory: all records of one run, in files that can be read without a server."""

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

#: Maximum bytes of failures.jsonl, and characters of an error and of a traceback in it.
_FAILURES_BYTES, _ERROR_LENGTH, _TRACEBACK_LENGTH = 4 << 20, 2_000, 64_000
#: Required entries of run.json, and their types.
_REQUIRED: dict[str, type] = {"id": str, "workload": str, "config": dict, "seed": int, "nodes": list}
_RESTORE = "restore the file from a backup, or from an export of the run"


class RunDirectory:
    """One run on disk::

        run.json              id, workload, config, seed, nodes, versions, created (seconds since 1970)
        result.json           the server program's return value; absent until the run has finished
        metrics.jsonl         metrics by step: {"step", "time", name: number or null}
        node_metrics.jsonl    metrics reported by node programs: {"node", "step", "time", name: number or null}
        rounds.jsonl          of a federated run: each round's cohort, missing clients with reasons, scores and bytes
        events.jsonl          events: {"time", "kind", …}
        failures.jsonl        errors of failed programs: {"time", "origin", "epoch", "error", "traceback"}
        ledger-0000.arrows    every transfer; one Arrow IPC stream per start of the run's process
        ledger-0000.sums      digests of its blocks
        sockets.jsonl         bytes on TCP: {"node", "epoch", "up", "down"} per data connection, if measured
        streams/              records appended by the server program: NAME.records
        checkpoints/          the server program's state: step-000000000120.safetensors, the two newest
        charts/               charts of the method for reports and the dashboard: NN-NAME.json
        states/               models for other programs: best.safetensors and last.safetensors
        log.txt               the log; older parts in log-000000000000.txt, named by the offset of their first byte

    ``epoch`` is the restart epoch: it counts the attempts to run the programs. Files are created when they are first
    written. Use :meth:`create` or :meth:`open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, path: Path, info: Mapping[str, Any]) -> RunDirectory:
        """Create the directory of a new run.

        Parameters
        ----------
        path : Path
            Must not contain a run.
        info : Mapping
            ``id``, ``workload``, ``config`` (resolved, JSON-serializable), ``seed``, ``nodes``, and any further
            entries; ``versions`` and ``created`` are filled in unless given.

        Raises
        ------
        StorageError
            The directory already contains a run, a required entry of ``info`` is missing, or writing fails.
        """
        missing = [name for name in _REQUIRED if name not in info]
        if missing:
            raise StorageError(f"cannot create the run directory {path}: missing {', '.join(missing)}")
        run = cls(path)
        if run._run_json.exists():
            raise StorageError(
                f"the directory {path} already contains a run", hint="choose another, or resume that run"
            )
        try:
            run.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise files.storage_error(f"cannot create the run directory {path}", error) from error
        files.write_json(run._run_json, {"versions": asdict(Versions.local()), "created": time.time(), **info})
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Open the directory of an existing run.

        Raises
        ------
        NotFoundError
            ``path`` has no ``run.json``.
        StorageError
            Its ``run.json`` is damaged.
        """
        run = cls(path)
        if not run._run_json.is_file():
            raise NotFoundError(f"{path} is not a run directory: it has no run.json", hint="see 'farshore runs ls'")
        info = run.info
        if missing := [name for name in _REQUIRED if name not in info]:
            raise StorageError(f"{run._run_json} is damaged: missing {', '.join(missing)}")
        if wrong := [name for name, kind in _REQUIRED.items() if not isinstance(info[name], kind)]:
            raise StorageError(f"{run._run_json} is damaged: {', '.join(wrong)} of the wrong type", hint=_RESTORE)
        return run

    @property
    def _run_json(self) -> Path:
        return self.path / "run.json"

    @property
    def info(self) -> dict[str, Any]:
        """The content of ``run.json``.

        Raises
        ------
        NotFoundError, StorageError
            The file is missing or damaged.
        """
        return files.read_json(self._run_json)

    def update(self, **values: Any) -> None:
        """Update entries of ``run.json`` atomically.

        Raises
        ------
        StorageError
            Writing fails; the old file is kept.
        """
        files.write_json(self._run_json, {**self.info, **values})

    @property
    def result(self) -> dict[str, Any] | None:
        """The server program's return value, or None before the run has finished."""
        path = self.path / "result.json"
        return files.read_json(path) if path.exists() else None

    def write_result(self, result: Mapping[str, Any]) -> None:
        """Write the run's result atomically; non-finite numbers are written as ``null``.

        Raises
        ------
        StorageError
            Writing fails, or the result is not JSON-serializable.
        """
        files.write_json(self.path / "result.json", result)

    @property
    def log(self) -> Path:
        """Path of the log, ``log.txt``."""
        return self.path / "log.txt"

    @property
    def checkpoints(self) -> CheckpointStore:
        """The server program's checkpoints."""
        return CheckpointStore(self.path / "checkpoints")

    def open_ledger(self, block_rows: int = 4096, flush_seconds: float = 1.0) -> Ledger:
        """Open the next segment of the ledger for writing; see :class:`~farshore.runs.ledger.Ledger`."""
        return Ledger(self.path, block_rows, flush_seconds)

    def read_ledger(self) -> pa.Table:
        """Read all transfers; see :func:`~farshore.runs.ledger_reader.read_ledger`."""
        return read_ledger(self.path)

    def add_socket_bytes(self, node: str, epoch: int, up: int, down: int) -> None:
        """Append the bytes on one data connection of a node to ``sockets.jsonl``.

        Raises
        ------
        StorageError
            Writing fails.
        """
        with jsonl.JsonLines(self.path / "sockets.jsonl") as lines:
            lines.append({"node": node, "epoch": epoch, "up": up, "down": down})

    def socket_bytes(self) -> dict[str, int]:
        """Sum the bytes on the sockets by ``up`` and ``down``; empty if they were not measured."""
        path = self.path / "sockets.jsonl"
        sums: dict[str, int] = {}
        for row in jsonl.read(path):
            for direction in ("up", "down"):
                if not isinstance(count := row.get(direction), int):
                    raise StorageError(f"{path} is damaged: a line without the bytes '{direction}'", hint=_RESTORE)
                sums[direction] = sums.get(direction, 0) + count
        return sums

    def open_metrics(self, sinks: Sequence[str] = ()) -> MetricsWriter:
        """Open ``metrics.jsonl`` for appending, and the named :mod:`~farshore.runs.sinks`.

        Raises
        ------
        ConfigError, MissingExtraError
            A sink is unknown or not usable on this machine.
        StorageError
            Writing fails.
        """
        return MetricsWriter(self.path / "metrics.jsonl", open_sinks(sinks, self.path) if sinks else None)

    def add_failure(self, origin: str, epoch: int, error: str, traceback: str) -> None:
        """Append a program's failure to ``failures.jsonl``, which is limited to about 4 MiB; long tracebacks are cut.

        Parameters
        ----------
        origin : str
            A node's name, or ``run``.
        epoch : int
            Restart epoch.
        error : str
            One line.
        traceback : str
            Empty if there is none.

        Raises
        ------
        StorageError
            Writing fails.
        """
        path = self.path / "failures.jsonl"
        if path.exists() and path.stat().st_size > _FAILURES_BYTES:
            return
        texts = {"error": error[:_ERROR_LENGTH], "traceback": traceback[-_TRACEBACK_LENGTH:]}
        with jsonl.JsonLines(path) as lines:
            lines.append({"time": time.time(), "origin": origin, "epoch": epoch, **texts})

    def read_failures(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of ``failures.jsonl``, oldest first."""
        return jsonl.read(self.path / "failures.jsonl")

    def read_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of ``metrics.jsonl``."""
        return read_metrics(self.path / "metrics.jsonl")

    def read_node_metrics(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of ``node_metrics.jsonl``."""
        return jsonl.read(self.path / "node_metrics.jsonl")

    def open_events(self) -> EventsWriter:
        """Open ``events.jsonl`` for appending."""
        return EventsWriter(self.path / "events.jsonl")

    def read_events(self) -> Iterator[dict[str, Any]]:
        """Yield the lines of ``events.jsonl``."""
        return read_events(self.path / "events.jsonl")
