"""Run directories on a node: finished ones are limited in number, unfinished ones kept while the disk has space."""

from __future__ import annotations

from pathlib import Path

import pytest

from farshore.client.held_runs import held, mark_finished, prune

_ROOMY = (100 << 30, 50 << 30)


def _folders(runs: Path, *names: str) -> None:
    for name in names:
        (runs / name / "checkpoints").mkdir(parents=True)


def _left(runs: Path) -> list[str]:
    return sorted(p.name for p in runs.iterdir())


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def test_the_oldest_finished_runs_are_deleted(runs: Path) -> None:
    _folders(runs, "261101-1", "261102-1", "261103-1", "261104-1")
    (runs / "note.txt").write_text("a file is not a run directory")
    mark_finished(runs, ["261101-1", "261102-1", "261103-1", "261104-1"])
    running = {"261101-1", "261105-1"}
    assert prune(runs, 3, running, lambda _: _ROOMY) == []
    assert _left(runs) == ["261101-1", "261104-1", "note.txt"]
    prune(runs, 1, running, lambda _: _ROOMY)
    assert _left(runs) == ["261101-1", "note.txt"]


def test_an_unfinished_run_outlives_any_number_of_later_ones(runs: Path) -> None:
    _folders(runs, "261101-1", *(f"261102-{n:02}" for n in range(30)))
    mark_finished(runs, [f"261102-{n:02}" for n in range(30)])
    prune(runs, 10, {"261103-1"}, lambda _: _ROOMY)
    assert "261101-1" in _left(runs)
    assert len(_left(runs)) == 10


def test_a_full_disk_costs_finished_runs_first_and_then_the_oldest_unfinished_ones(
    runs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    _folders(runs, "261101-1", "261102-1", "261103-1", "261104-1")
    mark_finished(runs, ["261103-1"])

    def space(folder: Path) -> tuple[int, int]:
        return 1000, 49 if len(_left(folder)) > 2 else 51  # short of the reserve of 5 % until two are deleted

    assert prune(runs, 10, {"261104-1"}, space) == ["261101-1"]
    assert _left(runs) == ["261102-1", "261104-1"]
    assert "unfinished run 261101-1" in caplog.text


def test_running_runs_are_kept_however_full_the_disk_is(runs: Path) -> None:
    _folders(runs, "261101-1", "261102-1")
    assert prune(runs, 10, {"261101-1"}, lambda _: (1000, 0)) == ["261102-1"]
    assert _left(runs) == ["261101-1"]


def test_a_large_disk_is_not_short_with_a_gibibyte_free(runs: Path) -> None:
    _folders(runs, "261101-1")
    assert prune(runs, 10, set(), lambda _: (100 << 40, 1 << 30)) == []


def test_a_missing_directory_is_fine(runs: Path) -> None:
    assert prune(runs, 1, set()) == []
    assert held(runs) == []


def test_finished_runs_are_not_asked_about_and_unknown_ids_make_no_directory(runs: Path) -> None:
    _folders(runs, "261101-1", "261102-1")
    mark_finished(runs, ["261102-1", "261103-1", "../outside", ".", ".."])
    assert held(runs) == ["261101-1"]
    assert _left(runs) == ["261101-1", "261102-1"]
    assert not (runs / "finished").exists()
    assert not (runs.parent / "finished").exists()
