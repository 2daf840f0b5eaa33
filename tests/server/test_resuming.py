"""A cancelled run over processes continues where it was, or says why it cannot; it never starts over on its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from farshore.runs.checkpoints import CheckpointStore

pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]

_LONG = {"rounds": 100_000, "kilobytes": 1, "checkpoint_every": 4, "pause_ms": 20}


def _cancelled(cloud: Any, until: Callable[..., Any], done: int = 13) -> Any:
    run_id = cloud.submit(_LONG, count=1)
    until(lambda: cloud.run(run_id).done >= done)
    with cloud.admin() as admin:
        admin.cancel(run_id)
    return cloud.run(run_id)


def _steps(folder: Path) -> list[int]:
    return CheckpointStore(folder / "checkpoints").steps()


def _resume(cloud: Any, run: Any, **how: Any) -> None:
    with cloud.admin() as admin:
        admin.resume(run.id, **how)


def test_a_cancelled_run_continues_after_more_later_runs_than_its_node_keeps(cloud: Any, until: Any) -> None:
    cloud.join("a", keep_runs=2)
    run = _cancelled(cloud, until)
    later = [cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished").id for _ in range(5)]
    runs = cloud.folder / "nodes" / "a" / "runs"
    kept = {p.name for p in runs.iterdir()}
    # Two finished runs, and perhaps one whose program was still ending when the last one started.
    assert {run.id, later[-1]} <= kept
    assert len(kept) <= 4
    held = _steps(runs / run.id)
    assert held
    _resume(cloud, run)
    until(lambda: cloud.run(run.id).done > run.done)
    assert f"continuing from the checkpoint of step {held[-1]}" in cloud.log(run)
    with cloud.admin() as admin:
        admin.cancel(run.id)


def test_a_node_learns_at_its_next_connection_which_runs_have_finished(cloud: Any, until: Any) -> None:
    cloud.join("a")
    run = cloud.when(cloud.submit({"rounds": 1, "kilobytes": 1}, count=1), "finished")
    marker = cloud.folder / "nodes" / "a" / "runs" / run.id / "finished"
    until(marker.exists)
    cloud.agents["a"].terminate()
    cloud.agents["a"].join()
    marker.unlink()
    cloud.join("a")
    until(marker.exists)


def test_a_resume_whose_node_lost_its_checkpoints_fails_and_destroys_nothing(cloud: Any, until: Any) -> None:
    cloud.join("a")
    run = _cancelled(cloud, until, done=101)  # so far that the second attempt is seen and cancelled well before
    directory, node = Path(run.directory), cloud.folder / "nodes" / "a" / "runs" / run.id
    before = _steps(directory)
    assert len(before) == 2
    shutil.move(node / "checkpoints", cloud.folder / "elsewhere")

    _resume(cloud, run)
    failed = cloud.when(run.id, "failed")
    assert f"the server has {before[0]}, {before[1]}, a has none" in failed.reason
    assert f"farshore runs resume {run.id} --from-start" in failed.reason
    assert _steps(directory) == before

    _resume(cloud, run, from_start=True)
    until(lambda: 4 <= cloud.run(run.id).done < 50)  # of the second attempt: the first is past 100
    with cloud.admin() as admin:
        admin.cancel(run.id)
    assert CheckpointStore(directory / "checkpoints" / "superseded").steps() == before

    _resume(cloud, run)
    until(lambda: cloud.run(run.id).done > before[1] + 2)
    until(lambda: not (directory / "checkpoints" / "superseded").exists())
    with cloud.admin() as admin:
        admin.cancel(run.id)


def test_an_operator_can_go_back_to_an_older_common_step(cloud: Any, until: Any) -> None:
    cloud.join("a")
    run = _cancelled(cloud, until)
    first, second = _steps(Path(run.directory))
    _resume(cloud, run, from_step=second + 1)
    failed = cloud.when(run.id, "failed")
    assert f"cannot continue from step {second + 1}" in failed.reason
    _resume(cloud, run, from_step=first)
    until(lambda: f"continuing from the checkpoint of step {first}" in cloud.log(run))
    until(lambda: _steps(Path(run.directory))[-1] > second)
    with cloud.admin() as admin:
        admin.cancel(run.id)
