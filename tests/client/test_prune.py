"""A node keeps the newest runs' checkpoints, and those of the runs it works on whatever their age."""

from __future__ import annotations

from pathlib import Path

from farshore.client.programs import prune


def _folders(runs: Path, *names: str) -> None:
    for name in names:
        (runs / name / "checkpoints").mkdir(parents=True)


def test_the_oldest_runs_that_nobody_works_on_go(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    _folders(runs, "261101-1", "261102-1", "261103-1", "261104-1")
    (runs / "note.txt").write_text("a file is nobody's run")
    prune(runs, 3, {"261101-1", "261105-1"})
    assert sorted(p.name for p in runs.iterdir()) == ["261101-1", "261104-1", "note.txt"]
    prune(runs, 1, {"261101-1", "261105-1"})
    assert sorted(p.name for p in runs.iterdir()) == ["261101-1", "note.txt"]


def test_few_runs_are_all_kept_and_a_new_node_has_none(tmp_path: Path) -> None:
    prune(tmp_path / "runs", 1, set())
    _folders(tmp_path / "runs", "261101-1", "261102-1")
    prune(tmp_path / "runs", 10, {"261103-1"})
    assert len(list((tmp_path / "runs").iterdir())) == 2
