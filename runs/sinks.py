"""Where a run's figures go besides ``metrics.jsonl``: CSV, TensorBoard's event files, an MLflow server.

A sink gets each line of figures as it is written, or afterwards from a run's directory. One that fails is left out, and
the log says so: no run ends because its figures could not be shown.
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
from typing import TYPE_CHECKING, Any, Protocol

from ..core.errors import ConfigError, MissingExtraError, NotFoundError, StorageError
from . import files

if TYPE_CHECKING:
    from .directory import RunDirectory

_log = logging.getLogger(__name__)

#: What each sink needs: a package and the extra that brings it.
_NEEDS: dict[str, tuple[str, str] | None] = {
    "csv": None,
    "tensorboard": ("tensorboard", "tensorboard"),
    "mlflow": ("mlflow", "mlflow"),
}
SINKS = tuple(_NEEDS)
#: The variable by which MLflow's own clients find its server or database.
_MLFLOW = "MLFLOW_TRACKING_URI"


class Sink(Protocol):
    """A place for figures."""

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Take finite figures of a round or step; ``seconds`` since 1970."""

    def close(self) -> None:
        """Nothing more will come."""


def check_sinks(names: Sequence[str]) -> None:
    """See that sinks exist and can be used here.

    Raises
    ------
    ConfigError
        There is no such sink, or nothing says where it is.
    MissingExtraError
        The package that it needs is not installed.
    """
    for name in names:
        if name not in _NEEDS:
            near = difflib.get_close_matches(name, SINKS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(SINKS)}"
            raise ConfigError(f"no metrics sink is called '{name}'", hint=hint)
        needed = _NEEDS[name]
        if needed is not None and find_spec(needed[0]) is None:
            raise MissingExtraError(*needed)
        if name == "mlflow" and not os.environ.get(_MLFLOW):
            raise ConfigError("nothing says where MLflow is", hint=f"set {_MLFLOW}, e.g. to http://localhost:5000")


def open_sinks(names: Sequence[str], run: RunDirectory, folder: Path | None = None) -> Sinks:
    """Sinks of a run by their names.

    Parameters
    ----------
    names : sequence of str
        Of :data:`SINKS`.
    run : RunDirectory
    folder : Path, optional
        Where files go; by default the run's own directory.

    Raises
    ------
    ConfigError, MissingExtraError
        As :func:`check_sinks`.
    """
    check_sinks(names)
    where = folder or run.path
    return Sinks({name: lambda name=name: _MAKERS[name](run, where) for name in dict.fromkeys(names)})  # type: ignore[misc]


def send(run: RunDirectory, name: str, folder: Path) -> int:
    """Send all figures of a run to a sink; returns how many lines there were.

    Raises
    ------
    ConfigError, MissingExtraError
        As :func:`check_sinks`.
    NotFoundError
        The run has no figures.
    StorageError
        The sink failed.
    """
    check_sinks([name])
    count = 0
    try:
        if (folder / "metrics.csv").exists() and name == "csv":
            raise StorageError(f"{folder / 'metrics.csv'} exists already", hint="choose another folder: --out DIR")
        folder.mkdir(parents=True, exist_ok=True)
        sink = _MAKERS[name](run, folder)
        for line in run.read_metrics():
            sink.write(int(line["step"]), float(line.get("time", 0.0)), figures_of(line))
            count += 1
        sink.close()
    except OSError as error:
        raise files.storage_error(f"cannot write to {folder}", error) from error
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise StorageError(f"the sink '{name}' failed: {error}", hint="see that it is there") from error
    if not count:
        raise NotFoundError(f"run {run.info['id']} has no figures yet", hint="its first round or step has to end first")
    return count


def figures_of(line: Mapping[str, Any]) -> dict[str, float]:
    """The figures of a line of ``metrics.jsonl``, without those that were not finite."""
    named = ((name, value) for name, value in line.items() if name not in ("step", "time"))
    return {name: float(value) for name, value in named if isinstance(value, int | float)}


class Sinks:
    """Several sinks, each opened with the first figures; those that fail are left out from then on.

    Parameters
    ----------
    makers : Mapping
        Name -> what makes the sink.
    """

    def __init__(self, makers: Mapping[str, Callable[[], Sink]]) -> None:
        self._makers = dict(makers)
        self._open: dict[str, Sink] = {}
        self._lock = threading.Lock()

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Pass figures on; never raises. Any thread may."""
        with self._lock:
            for name in list(self._makers):
                self._tried(name, lambda name=name: self._sink(name).write(step, seconds, values))  # type: ignore[misc]

    def close(self) -> None:
        """Close all; never raises."""
        with self._lock:
            for name, sink in self._open.items():
                self._tried(name, sink.close)
            self._open.clear()
            self._makers.clear()

    def _sink(self, name: str) -> Sink:
        if name not in self._open:
            self._open[name] = self._makers[name]()
        return self._open[name]

    def _tried(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._makers.pop(name, None)
            _log.warning("the metrics sink '%s' failed and is left out: %s: %s", name, type(error).__name__, error)


class _Csv:
    """``metrics.csv`` in the long form that spreadsheets and data frames pivot: step, time, name, value."""

    def __init__(self, run: RunDirectory, folder: Path) -> None:
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
    """Event files in the folder ``tensorboard``: one more for each start of the run's process."""

    def __init__(self, run: RunDirectory, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        self._writer = EventFileWriter(str(folder / "tensorboard"))

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        told = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._writer.add_event(Event(wall_time=seconds, step=step, summary=Summary(value=told)))

    def close(self) -> None:
        self._writer.close()


class _MLflow:
    """A run of the experiment ``farshore``, wherever ``MLFLOW_TRACKING_URI`` says.

    A farshore run that goes on after a restart goes on in the same run there.
    """

    def __init__(self, run: RunDirectory, folder: Path) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=os.environ[_MLFLOW])
        self._run_id = self._known(folder) or self._new(run, folder)

    def write(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        moment = int(seconds * 1000)
        self._client.log_batch(self._run_id, [Metric(n, v, moment, step) for n, v in values.items()])

    def close(self) -> None:
        self._client.set_terminated(self._run_id)

    def _known(self, folder: Path) -> str:
        note = folder / "mlflow.json"
        return str(files.read_json(note)["run_id"]) if note.exists() else ""

    def _new(self, run: RunDirectory, folder: Path) -> str:
        info = run.info
        found = self._client.get_experiment_by_name("farshore")
        experiment = found.experiment_id if found else self._client.create_experiment("farshore")
        made = self._client.create_run(experiment, run_name=str(info["id"]), tags={"method": str(info["workload"])})
        run_id = str(made.info.run_id)
        for name, value in {**_flat(info["config"]), "seed": info["seed"]}.items():
            self._client.log_param(run_id, name, str(value)[:500])
        files.write_json(folder / "mlflow.json", {"run_id": run_id})
        return run_id


_MAKERS: dict[str, Callable[[Any, Path], Sink]] = {"csv": _Csv, "tensorboard": _TensorBoard, "mlflow": _MLflow}


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by their dotted keys."""
    found: dict[str, Any] = {}
    for name, value in config.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found
