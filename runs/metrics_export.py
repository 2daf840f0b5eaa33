"""Export of a run's recorded metrics to a sink: CSV, TensorBoard or MLflow."""

from __future__ import annotations

from pathlib import Path

from ..core.errors import ConfigError, NotFoundError, StorageError
from . import files
from .directory import RunDirectory
from .sinks import check_sinks, metrics_of, open_sink


def export_metrics(run: RunDirectory, name: str, folder: Path) -> int:
    """Write all metrics of a run to a sink; return the number of lines of ``metrics.jsonl``.

    Parameters
    ----------
    run : RunDirectory
    name : str
        One of :data:`~farshore.runs.sinks.SINKS`.
    folder : Path
        Output folder; created if missing.

    Raises
    ------
    ConfigError, MissingExtraError
        As :func:`~farshore.runs.sinks.check_sinks`.
    NotFoundError
        The run has no metrics.
    StorageError
        The sink failed, or ``folder`` already has a ``metrics.csv``.
    """
    check_sinks([name])
    count = 0
    try:
        if (folder / "metrics.csv").exists() and name == "csv":
            raise StorageError(f"{folder / 'metrics.csv'} already exists", hint="choose another folder: --out DIR")
        folder.mkdir(parents=True, exist_ok=True)
        sink = open_sink(name, run.path, folder)
        for line in run.read_metrics():
            sink.write(int(line["step"]), float(line.get("time", 0.0)), metrics_of(line))
            count += 1
        sink.close()
    except OSError as error:
        raise files.storage_error(f"cannot write to {folder}", error) from error
    except (ConfigError, StorageError):
        raise
    except Exception as error:
        raise StorageError(f"the sink '{name}' failed: {error}", hint="check that its service is reachable") from error
    if not count:
        raise NotFoundError(f"run {run.info['id']} has no metrics yet", hint="wait for its first round or step to end")
    return count
