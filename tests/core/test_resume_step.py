"""From which step the programs of a run continue, and when they refuse to begin anew."""

from __future__ import annotations

import pytest

from farshore.core.errors import StorageError
from farshore.core.handshake import ResumeFrom, resume_step

_RESUMED = ResumeFrom()


@pytest.mark.parametrize("wanted", [None, _RESUMED])
def test_the_newest_common_step_is_chosen_even_if_a_killed_program_lacks_the_newest(wanted: ResumeFrom | None) -> None:
    assert resume_step([110, 120], {"a": [110, 120], "b": [100, 110]}, wanted=wanted) == 110
    assert resume_step([], {"a": [], "b": []}, wanted=wanted) is None


@pytest.mark.parametrize("wanted", [None, _RESUMED])
def test_a_node_without_checkpoints_does_not_start_the_run_over(wanted: ResumeFrom | None) -> None:
    with pytest.raises(StorageError) as caught:
        resume_step([110, 120], {"a": [110, 120], "b": []}, wanted=wanted)
    assert "b has none" in caught.value.message
    assert "--from-start" in caught.value.hint


@pytest.mark.parametrize("wanted", [None, _RESUMED])
def test_a_server_without_checkpoints_does_not_start_the_run_over(wanted: ResumeFrom | None) -> None:
    with pytest.raises(StorageError, match="the server has none"):
        resume_step([], {"a": [110, 120]}, wanted=wanted)
    assert resume_step([], {"a": [110, 120]}, wanted=wanted, started_over=True) is None


def test_a_restart_may_lose_a_first_checkpoint_that_only_one_program_completed_but_a_resume_asks() -> None:
    assert resume_step([10], {"a": []}) is None
    assert resume_step([], {"a": [10]}, wanted=_RESUMED) is None
    with pytest.raises(StorageError):
        resume_step([10], {"a": []}, wanted=_RESUMED)


def test_an_operator_can_start_over_or_go_back_to_an_older_common_step() -> None:
    assert resume_step([110, 120], {"a": []}, wanted=ResumeFrom(start=True)) is None
    assert resume_step([110, 120], {"a": [110, 120]}, wanted=ResumeFrom(step=110)) == 110
    with pytest.raises(StorageError, match=r"step 120: .* on a \(has 100, 110\) –"):
        resume_step([110, 120], {"a": [100, 110]}, wanted=ResumeFrom(step=120))
