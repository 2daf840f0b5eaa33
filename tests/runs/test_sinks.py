"""Metrics reach each sink, as read back with the format's own library; a failing sink does not fail the run."""

from __future__ import annotations

import csv
import logging
import math
from collections.abc import Sequence
from pathlib import Path

import pytest

from farshore.core.errors import ConfigError, MissingExtraError, NotFoundError, StorageError
from farshore.core.packages import install_command
from farshore.runs import sinks
from farshore.runs.directory import RunDirectory
from farshore.runs.metrics_export import export_metrics
from farshore.runs.sinks import check_sinks

METRICS = [(1, {"loss": 2.5, "acc": 0.25}), (2, {"loss": math.nan, "acc": 0.5}), (3, {"loss": 1.25, "acc": 0.75})]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    info = {"id": "one", "workload": "vhl", "config": {"lr": 0.1, "virtual": {"batch": 8}}, "seed": 3, "nodes": []}
    return RunDirectory.create(tmp_path / "one", info)


def write(run: RunDirectory, names: Sequence[str]) -> None:
    metrics = run.open_metrics(names)
    for step, values in METRICS:
        metrics.write(step, values)
    metrics.close()


def read_csv(path: Path) -> list[tuple[int, str, float]]:
    with path.open(newline="") as file:
        return [(int(row["step"]), row["name"], float(row["value"])) for row in csv.DictReader(file)]


EXPECTED = [(1, "loss", 2.5), (1, "acc", 0.25), (2, "acc", 0.5), (3, "loss", 1.25), (3, "acc", 0.75)]


def read_events(folder: Path) -> list[tuple[int, str, float]]:
    """Read scalars with TensorBoard's own reader."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder))
    reader.Reload()
    found = [(e.step, tag, e.value) for tag in reader.Tags()["scalars"] for e in reader.Scalars(tag)]
    return sorted(found, key=lambda row: (row[0], row[1] != "loss"))


def test_csv_is_continued_after_a_restart(run: RunDirectory) -> None:
    write(run, ["csv"])
    write(run, ["csv"])
    assert read_csv(run.path / "metrics.csv") == EXPECTED * 2
    assert len(list(run.read_metrics())) == 6


def test_tensorboard_reads_the_event_files(run: RunDirectory) -> None:
    pytest.importorskip("tensorboard")
    write(run, ["tensorboard", "csv"])
    assert read_events(run.path / "tensorboard") == EXPECTED
    assert read_csv(run.path / "metrics.csv") == EXPECTED


def test_recorded_metrics_are_exported_afterwards(run: RunDirectory, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(NotFoundError, match="no metrics yet"):
        export_metrics(run, "csv", tmp_path / "early")
    write(run, [])
    assert export_metrics(run, "tensorboard", tmp_path / "out") == 3
    assert read_events(tmp_path / "out" / "tensorboard") == EXPECTED
    assert export_metrics(run, "csv", tmp_path / "out") == 3
    assert read_csv(tmp_path / "out" / "metrics.csv") == EXPECTED
    with pytest.raises(StorageError, match="already exists"):
        export_metrics(run, "csv", tmp_path / "out")


def test_mlflow_run_is_continued_after_a_restart(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "tracking").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    write(run, ["mlflow"])
    write(run, ["mlflow"])
    client = MlflowClient(tracking_uri=(tmp_path / "tracking").as_uri())
    experiment = client.get_experiment_by_name("farshore")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    assert logged.info.run_name == "one"
    assert logged.data.params == {"lr": "0.1", "virtual.batch": "8", "seed": "3"}
    history = client.get_metric_history(logged.info.run_id, "acc")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5), (3, 0.75)] * 2
    assert logged.info.status == "FINISHED"


def test_a_failing_sink_is_disabled_and_logged_once(
    run: RunDirectory, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        def __init__(self, *_: object) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(sinks._FACTORIES, "tensorboard", Full)
    monkeypatch.setitem(sinks._REQUIREMENTS, "tensorboard", None)
    with caplog.at_level(logging.WARNING):
        write(run, ["tensorboard", "csv"])
    assert len(caplog.records) == 1
    assert "metrics sink 'tensorboard' failed and is disabled: OSError" in caplog.text
    assert read_csv(run.path / "metrics.csv") == EXPECTED
    with pytest.raises(StorageError, match="No space left"):
        export_metrics(run, "tensorboard", run.path / "out")


def test_errors_name_unknown_sinks_missing_settings_and_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unknown metrics sink 'tensorbord'") as error:
        check_sinks(["csv", "tensorbord"])
    assert error.value.hint == "did you mean 'tensorboard'?"
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setattr(sinks, "find_spec", lambda name: True)
    with pytest.raises(ConfigError, match="the MLflow server is not configured"):
        check_sinks(["mlflow"])
    monkeypatch.setattr(sinks, "find_spec", lambda name: None)
    check_sinks(["csv"])
    with pytest.raises(MissingExtraError) as missing:
        check_sinks(["mlflow"])
    assert missing.value.hint == install_command("mlflow")
