"""Sinks for a run's metrics besides ``metrics.jsonl``: CSV, TensorBoard event files, an MLflow server.

A sink receives metrics as they are recorded, or afterwards through :mod:`~farshore.runs.metrics_export`. A sink that
fails is logged and disabled; it never fails the run.
"""

from __future__ import annotations

import csv
import difflib
import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from ..core.errors import ConfigError, MissingExtraError
from . import files

_log = logging.getLogger(__name__)

#: The package that each sink needs, and the extra that installs it.
_REQUIREMENTS: dict[str, tuple[str, str] | None] = {
    "csv": None,
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
}
SINKS = tuple(_REQUIREMENTS)
#: Environment variable with the URI of the MLflow server or database.
_MLFLOW_URI = "MLFLOW_TRACKING_URI"


class Sink(Protocol):
    """A destination of metrics."""

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Write the finite metrics of a round or step; ``seconds`` is the time since 1970."""

    def close(self) -> None:
        """Flush and close the sink."""


def check_sinks(names: Sequence[str]) -> None:
    """Check that sinks exist and are usable on this machine.

    Raises
    ------
    ConfigError
        A name is unknown, or the URI of the MLflow server is not set.
    MissingExtraError
        A sink's package is not installed.
    """
    for name in names:
        if name not in _REQUIREMENTS:
            near = difflib.get_close_matches(name, SINKS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"available: {', '.join(SINKS)}"
            raise ConfigError(f"unknown metrics sink '{name}'", hint=hint)
        requirement = _REQUIREMENTS[name]
        if requirement is not None and find_spec(requirement[0]) is None:
            raise MissingExtraError(*requirement)
        if name == "mlflow" and not os.environ.get(_MLFLOW_URI):
            raise ConfigError(
                "the MLflow server is not configured", hint=f"set {_MLFLOW_URI}, e.g. to http://localhost:5000"
            )


def open_sinks(names: Sequence[str], run: Path, folder: Path | None = None) -> Sinks:
    """Create a run's sinks; each is opened when it receives its first metrics.

    Parameters
    ----------
    names : sequence of str
        Of :data:`SINKS`.
    run : Path
        The run directory.
    folder : Path, optional
        Output folder; by default the run directory.

    Raises
    ------
    ConfigError, MissingExtraError
        As :func:`check_sinks`.
    """
    check_sinks(names)
    out = folder or run
    return Sinks({name: lambda name=name: open_sink(name, run, out) for name in dict.fromkeys(names)})  # type: ignore[misc]


def open_sink(name: str, run: Path, folder: Path) -> Sink:
    """Open one sink for the run directory ``run`` that writes its files to ``folder``."""
    return _FACTORIES[name](run, folder)


def metrics_of(line: Mapping[str, Any]) -> dict[str, float]:
    """Return the metrics of a line of ``metrics.jsonl``, without the ``null`` ones."""
    metrics = ((name, value) for name, value in line.items() if name not in ("step", "time"))
    return {name: float(value) for name, value in metrics if isinstance(value, int | float)}


class Sinks:
    """Several sinks; each is opened with its first metrics and disabled after an error. Thread-safe.

    Parameters
    ----------
    factories : Mapping
        Name -> function that opens the sink.
    """

    def __init__(self, factories: Mapping[str, Callable[[], Sink]]) -> None:
        self._factories = dict(factories)
        self._open: dict[str, Sink] = {}
        self._lock = threading.Lock()

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Write metrics to all sinks; never raises."""
        with self._lock:
            for name in list(self._factories):
                self._attempt(name, lambda name=name: self._sink(name).write(step, seconds, values))  # type: ignore[misc]

    def close(self) -> None:
        """Close all sinks; never raises."""
        with self._lock:
            for name, sink in self._open.items():
                self._attempt(name, sink.close)
            self._open.clear()
            self._factories.clear()

    def _sink(self, name: str) -> Sink:
        if name not in self._open:
            self._open[name] = self._factories[name]()
        return self._open[name]

    def _attempt(self, name: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:
            self._factories.pop(name, None)
            _log.warning("metrics sink '%s' failed and is disabled: %s: %s", name, type(error).__name__, error)


class _Csv:
    """``metrics.csv`` in long format, with the columns step, time, name and value."""

    def __init__(self, run: Path, folder: Path) -> None:
        path = folder / "metrics.csv"
        self._file = path.open("a", encoding="utf-8", newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        if not self._file.tell():
            self._rows.writerow(("step", "time", "name", "value"))

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        self._rows.writerows((step, f"{seconds:.3f}", name, repr(value)) for name, value in values.items())
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class _TensorBoard:
    """Event files in the folder ``tensorboard``, one per start of the run's process."""

    def __init__(self, run: Path, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder / "tensorboard"))

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=seconds, step=step, summary=Summary(value=scalars)))

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run of the experiment ``farshore`` on the server that ``MLFLOW_TRACKING_URI`` names.

    A resumed farshore run continues the same MLflow run, whose id is in ``mlflow.json``.
    """

    def __init__(self, run: Path, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=os.environ[_MLFLOW_URI])
        self._run_id = self._existing_run(folder) or self._create_run(run, folder)

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        milliseconds = int(seconds * 1000)
        self._client.log_batch(self._run_id, [Metric(n, v, milliseconds, step) for n, v in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)

    def _existing_run(self, folder: Path) -> str:
        path = folder / "mlflow.json"
        return str(files.read_json(path)["run_id"]) if path.exists() else ""

    def _create_run(self, run: Path, folder: Path) -> str:
        info = files.read_json(run / "run.json")
        found = self._client.get_experiment_by_name("farshore")
        experiment = found.experiment_id if found else self._client.create_experiment("farshore")
        created = self._client.create_run(experiment, run_name=str(info["id"]), tags={"method": str(info["workload"])})
        run_id = str(created.info.run_id)
        for name, value in {**_flatten(info["config"]), "seed": info["seed"]}.items():
            self._client.log_param(run_id, name, str(value)[:500])
        files.write_json(folder / "mlflow.json", {"run_id": run_id})
        return run_id


_FACTORIES: dict[str, Callable[[Path, Path], Sink]] = {"csv": _Csv, "tensorboard": _TensorBoard, "mlflow": _MLflow}


def _flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
