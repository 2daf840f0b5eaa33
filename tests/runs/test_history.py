"""The history of rounds is appended to one file and truncated to the checkpoint when a run resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import StorageError
from farshore.runs.history import History, read_history


def entry(number: int) -> dict[str, Any]:
    return {"round": number, "cohort": [number, number + 1], "train_loss": 1 / number}


def written(folder: Path, rounds: int) -> Path:
    with History(folder, 0) as history:
        for number in range(1, rounds + 1):
            history.append(entry(number))
    return folder / "rounds.jsonl"


def test_resuming_discards_rounds_after_the_checkpoint(tmp_path: Path) -> None:
    path = written(tmp_path, 5)
    with History(tmp_path, 3) as history:
        assert history.entries == [entry(1), entry(2), entry(3)]
        assert len(path.read_bytes().splitlines()) == 3
        history.append(entry(4))
    assert read_history(tmp_path, 4) == [entry(n) for n in (1, 2, 3, 4)]


@pytest.mark.parametrize("left", range(1, 60, 7))
def test_a_kill_in_the_middle_of_a_line_keeps_all_earlier_rounds(tmp_path: Path, left: int) -> None:
    path = written(tmp_path, 3)
    complete = path.read_bytes()
    last = len(complete.splitlines(keepends=True)[-1])
    path.write_bytes(complete[: len(complete) - last + min(left, last - 1)])
    with History(tmp_path, 2) as history:
        history.append(entry(3))
    assert path.read_bytes() == complete


def test_a_run_without_a_checkpoint_starts_with_an_empty_history(tmp_path: Path) -> None:
    path = written(tmp_path, 2)
    History(tmp_path, 0)
    assert path.read_bytes() == b""
    assert History(tmp_path / "none", 0).entries == []


def test_nan_and_infinity_are_read_back(tmp_path: Path) -> None:
    with History(tmp_path, 0) as history:
        history.append({"round": 1, "train_loss": math.nan, "worst": math.inf})
    (found,) = read_history(tmp_path, 1)
    assert math.isnan(found["train_loss"])
    assert math.isnan(found["worst"])  # JSON has neither


@pytest.mark.parametrize("damage", ["missing", "short", "broken", "another round"])
def test_a_history_without_a_round_of_the_checkpoint_is_rejected_and_unchanged(tmp_path: Path, damage: str) -> None:
    path = written(tmp_path, 4)
    lines = path.read_bytes().splitlines(keepends=True)
    if damage == "missing":
        path.unlink()
    else:
        damaged = {"short": lines[:1], "broken": [lines[0], b'{"round": 2\n', *lines[2:]], "another round": lines[1:]}
        path.write_bytes(b"".join(damaged[damage]))
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(StorageError, match=r"round \d is missing"):
        History(tmp_path, 4)
    assert (path.read_bytes() if path.exists() else None) == before
