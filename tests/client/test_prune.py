"""Pruning of run directories on a node: the newest and the active runs are kept."""

from __future__ import annotations

from pathlib import Path

from farshore.client.programs import prune


def _folders(runs: Path, *names: str) -> None:
    for name in names:
        (runs / name / "checkpoints").mkdir(parents=True)


def test_the_oldest_inactive_runs_are_deleted(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    _folders(runs, "261101-1", "261102-1", "261103-1", "261104-1")
    (runs / "note.txt").write_text("a file is not a run directory")
    prune(runs, 3, {"261101-1", "261105-1"})
    assert sorted(p.name for p in runs.iterdir()) == ["261101-1", "261104-1", "note.txt"]
    prune(runs, 1, {"261101-1", "261105-1"})
    assert sorted(p.name for p in runs.iterdir()) == ["261101-1", "note.txt"]


def test_fewer_runs_than_the_limit_are_all_kept_and_a_missing_directory_is_fine(tmp_path: Path) -> None:
    prune(tmp_path / "runs", 1, set())
    _folders(tmp_path / "runs", "261101-1", "261102-1")
    prune(tmp_path / "runs", 10, {"261103-1"})
    assert len(list((tmp_path / "runs").iterdir())) == 2
