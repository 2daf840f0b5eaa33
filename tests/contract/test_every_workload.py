"""What the platform promises of every built-in method, in one process; ``small_runs.py`` has the small settings.

A method that is new in the table of methods is held to all of it: without a line in ``SMALL_RUNS`` the suite fails.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest

from farshore.cli import connect
from farshore.cli.main import execute
from farshore.cli.settings import build, describe
from farshore.core.errors import ConfigError, DataError, ExitCode, FarshoreError, RunCancelledError, RunFailedError
from farshore.core.nodes import DEFAULT_ROLE
from farshore.core.seeds import Seed
from farshore.core.session import Workload
from farshore.core.traffic_plan import Setting, SupportsTrafficPlan
from farshore.core.workloads import BUILT_IN, load
from farshore.reports.estimate import planned_ledger
from farshore.simulations.rehearsal import rehearsal_of, rehearse

from .recorded_run import Recorded, Recorder, differing, frames_of
from .small_runs import SEED, SELF_EXPLAINING, SMALL_RUNS, Promise, SmallRun

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS = sorted(BUILT_IN)
Start = Callable[..., Recorder]


def methods(promise: Promise, *, kept: bool = True) -> list[str]:
    """Methods that keep a promise, or those of which the table says why they do not."""
    return [name for name in METHODS if name in SMALL_RUNS and (promise in SMALL_RUNS[name].without) != kept]


@pytest.fixture
def start(data_sets: dict[str, Path], tmp_path: Path) -> Start:
    """``start(method, folder="run")``: a recorder of a run in a folder of this test."""

    def begin(name: str, folder: str = "run") -> Recorder:
        return Recorder(name, SMALL_RUNS[name], data_sets, tmp_path / folder)

    return begin


@pytest.fixture
def whole(start: Start) -> Callable[[str], Recorded]:
    """``whole(method)``: an uninterrupted run."""
    return lambda name: start(name, "whole").finish()


@pytest.fixture(autouse=True)
def nothing_is_left_running(until: Callable[..., Any]) -> Iterator[None]:
    """Every thread of a run has ended, or ends by itself, after each test."""
    before = set(threading.enumerate())
    yield
    until(lambda: not [t for t in set(threading.enumerate()) - before if t.is_alive() and not is_foreign(t)])


def is_foreign(thread: threading.Thread) -> bool:
    """Whether a thread was started by a library in C++, and is reused by it."""
    return isinstance(thread, threading._DummyThread)


def comparable(name: str, result: dict[str, Any]) -> dict[str, Any]:
    """The result without what is measured."""
    return {key: value for key, value in result.items() if key not in SMALL_RUNS[name].measured}


def assert_equal(name: str, one: Recorded, other: Recorded) -> None:
    """Assert that two runs ended with the same bits."""
    assert one.states
    assert differing(one.states, other.states) == []
    assert comparable(name, one.result) == comparable(name, other.result)


# ---- the table -------------------------------------------------------------------------------------------------------


def test_every_built_in_method_has_a_small_run_with_a_reason_for_each_exemption() -> None:
    assert SMALL_RUNS.keys() == BUILT_IN.keys(), "add the method to tests/contract/small_runs.py"
    for small in SMALL_RUNS.values():
        assert small.without.keys() <= set(get_args(Promise))
        assert all(len(reason) > 10 for reason in small.without.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_method_introduces_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    workload = load(name)
    assert workload.name == name
    assert 10 < len(workload.summary) <= 120
    assert "\n" not in workload.summary
    assert execute(["methods", name]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"{name}: {workload.summary}")
    assert all(key in "".join(text.split()) for key, *_ in describe(workload.config))


@pytest.mark.parametrize("name", METHODS)
def test_every_setting_is_described(name: str) -> None:
    undescribed = [
        key
        for key, kind, _, description in describe(load(name).config)
        if not description
        and " | " not in kind
        and kind != "bool"
        and key.rpartition(".")[2] not in SELF_EXPLAINING
        and not key.startswith(SMALL_RUNS[name].foreign or ("?",))
    ]
    assert undescribed == []


@pytest.mark.parametrize("name", methods("defaults"))
def test_the_defaults_are_valid_and_survive_json(name: str) -> None:
    config = build(load(name).config, ())
    assert load(name).config.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("name", methods("defaults", kept=False))
def test_a_method_without_defaults_says_what_is_missing(name: str) -> None:
    with pytest.raises(ConfigError, match=r"the setting '\w+' is missing – give --set \w+="):
        build(load(name).config, ())


# ---- wrong settings and missing data ---------------------------------------------------------------------------------


def wrong_settings(name: str) -> list[tuple[str, str]]:
    """Pairs of a wrong ``key=value`` and what the message has to name: an unknown key, a wrong type, a wrong choice."""
    if SMALL_RUNS[name].wrong:
        return list(SMALL_RUNS[name].wrong)
    rows = [(key, kind) for key, kind, *_ in describe(load(name).config)]
    number = next(key for key, kind in rows if kind in ("int", "float"))
    choice = next((key for key, kind in rows if " | " in kind and not kind.endswith("None")), None)
    found = [(f"{number}x=1", number), (f"{number}=many", number)]
    return found + ([(f"{choice}=nonsense", choice)] if choice else [])


def error_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The error that a command prints, which must be one of settings, in one line with at most one hint."""
    assert execute(arguments) == ExitCode.CONFIG
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("app ", "  to accept"))]
    assert len(lines) <= 2, lines
    assert lines[0].startswith("error: ")
    return " ".join(lines)


@pytest.mark.parametrize("name", METHODS)
def test_a_wrong_setting_gets_one_line_with_key_and_remedy_and_submits_nothing(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "connect", lambda **given: nullcontext(object()))  # any use of the server fails
    for pair, key in wrong_settings(name):
        line = error_line(["run", name, *SMALL_RUNS[name].arguments, "--set", pair], capsys)
        assert key in line
        assert any(word in line for word in ("try: ", "expected", "must be"))


@pytest.mark.parametrize("name", METHODS)
def test_the_configuration_itself_refuses_wrong_settings(name: str) -> None:
    model, small = load(name).config, SMALL_RUNS[name]
    right = small.config(small.workload(name)).model_dump()
    assert model.model_validate(right)
    with pytest.raises(ValueError, match="misspelled"):
        model.model_validate({**right, "misspelled": 1})


def missing(name: str) -> tuple[Any, str, str]:
    """Workload, setting and name of a data set that nobody has."""
    small = SMALL_RUNS[name]
    setting, data_set = small.missing
    assert setting, f"give '{name}' a setting with a missing data set in small_runs.py"
    return small.workload(name), setting, data_set


@pytest.mark.parametrize("name", methods("data"))
def test_a_missing_data_set_is_named_with_the_option_that_gives_it(name: str, tmp_path: Path) -> None:
    workload, setting, data_set = missing(name)
    small = SMALL_RUNS[name]
    config = build(workload.config, [f"{k}={v}" for k, v in small.settings.items() if k == "model"] + [setting])
    assert any(data_set in names for names in workload.node_data(config)), "a scheduler could not know of it"
    run = Recorder(name, SmallRun({**config.model_dump()}, small.nodes), {}, tmp_path / "run")
    with pytest.raises(DataError) as error:
        run.finish()
    known = {each for names in workload.node_data(config) for each in names}
    assert any(f"'{each}'" in error.value.message and f"--data {each}=PATH" in error.value.hint for each in known)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", methods("data", kept=False))
def test_a_method_without_data_sets_requests_none(name: str) -> None:
    small = SMALL_RUNS[name]
    workload = small.workload(name)
    assert not workload.node_data(small.config(workload))


# ---- estimate = ledger -----------------------------------------------------------------------------------------------


def estimated_ledger(small: SmallRun, workload: Workload, data_sets: dict[str, Path]) -> list[dict[str, Any]]:
    """The rows of the ledger that ``farshore estimate`` builds: planned by the method, or rehearsed."""
    config = small.config(workload)
    if not isinstance(workload, SupportsTrafficPlan):
        found, _ = rehearsal_of(workload, config)
        return list(
            rehearse(workload, found, dict.fromkeys(small.node_names, DEFAULT_ROLE), SEED, data_sets).to_pylist()
        )

    def find(data_set: str) -> Path:
        if data_set not in data_sets:
            raise DataError(f"there is no '{data_set}'")
        return data_sets[data_set]

    return list(planned_ledger(workload.plan(config, Setting(small.node_names, Seed(SEED), find))).to_pylist())


@pytest.mark.parametrize("name", methods("estimate"))
def test_a_run_sends_what_was_estimated(
    name: str, whole: Callable[[str], Recorded], data_sets: dict[str, Path]
) -> None:
    small = SMALL_RUNS[name]
    planned = estimated_ledger(small, small.workload(name), data_sets)
    sent = whole(name)
    assert frames_of(planned) == sent.frames
    # Scalars of control messages are only known once a run has them.
    planned_bytes, sent_bytes = (
        sum(row["frame_bytes"] for row in rows) for rows in (planned, map(asdict, sent.own_rows))
    )
    assert planned_bytes == pytest.approx(sent_bytes, rel=2e-3)


@pytest.mark.parametrize("name", methods("estimate", kept=False))
def test_an_estimate_that_is_impossible_is_refused_with_the_alternative(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = error_line(["estimate", name], capsys)
    assert "cannot be estimated" in line
    assert "farshore report" in line


# ---- resumed = uninterrupted -----------------------------------------------------------------------------------------


class PowerCutError(Exception):
    """The end of a program that a test plans."""


def cut(node: str) -> None:
    raise PowerCutError


def middle(recorded: Recorded, direction: str) -> int:
    """Number of the frame just after the middle of a run."""
    return sum(row.direction == direction for row in recorded.own_rows) * 2 // 3


@pytest.mark.parametrize("direction", ["down", "up"], ids=["server fails", "node fails"])
@pytest.mark.parametrize("name", methods("resumed"))
def test_a_resumed_run_equals_an_uninterrupted_one(
    name: str, direction: Any, start: Start, whole: Callable[[str], Recorded]
) -> None:
    expected = whole(name)
    broken = start(name).at_frame(direction, middle(expected, direction), cut)
    with pytest.raises((PowerCutError, RunFailedError)):
        broken.finish()
    resumed = start(name).finish()
    assert 0 < len(resumed.own_rows) < len(expected.own_rows), "it resumed, rather than started again"
    assert_equal(name, resumed, expected)
    assert resumed.metrics
    byte_counts = ("_bytes",)  # of the resumed run itself
    for step, values in resumed.metrics.items():
        before = expected.metrics[step]
        assert values.keys() == before.keys()
        assert {n: v for n, v in values.items() if not n.endswith(byte_counts)} == {
            n: v for n, v in before.items() if not n.endswith(byte_counts)
        }


@pytest.mark.parametrize("name", methods("resumed", kept=False))
def test_a_method_without_checkpoints_starts_from_the_beginning_again(
    name: str, start: Start, whole: Callable[[str], Recorded]
) -> None:
    expected = whole(name)
    with pytest.raises((PowerCutError, RunFailedError)):
        start(name).at_frame("up", middle(expected, "up"), cut).finish()
    again = start(name).finish()
    assert again.frames == expected.frames
    assert_equal(name, again, expected)


# ---- lost nodes ------------------------------------------------------------------------------------------------------


def continuing(name: str) -> bool:
    return load(name).on_lost_node == "continue"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [name for name in methods("lost node") if continuing(name)])
def test_a_run_that_continues_without_lost_nodes_ends_although_one_is_killed(
    name: str, start: Start, whole: Callable[[str], Recorded]
) -> None:
    expected = whole(name)
    recorder = start(name)
    killed: list[str] = []

    def kill(node: str) -> None:
        killed.append(node)
        recorder.run.kill(node)

    ended = recorder.at_frame("down", middle(expected, "down"), kill).finish()
    assert ended.result.keys() == expected.result.keys()
    assert ended.progress[-1] == expected.progress[-1]
    (node,) = killed
    assert {(row.node, row.attempt) for row in ended.own_rows} >= {(node, 0), (node, 1)}, "it returned"


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", [name for name in methods("lost node") if not continuing(name)])
def test_a_run_that_restarts_after_a_loss_ends_at_once_on_all_sides_and_names_the_node(
    name: str, start: Start, whole: Callable[[str], Recorded]
) -> None:
    """What follows is the restart from the common checkpoint: ``test_a_resumed_run_equals_an_uninterrupted_one``."""
    lost: list[str] = []

    def fail(node: str) -> None:
        lost.append(node)
        raise PowerCutError

    with pytest.raises(RunFailedError) as error:
        start(name).at_frame("up", middle(whole(name), "up"), fail).finish()
    assert f"node '{lost[0]}' failed: PowerCutError" in str(error.value)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", methods("lost node", kept=False))
def test_a_run_that_needs_its_only_node_ends_with_an_error(
    name: str, start: Start, whole: Callable[[str], Recorded]
) -> None:
    with pytest.raises(FarshoreError):
        start(name).at_frame("up", middle(whole(name), "up"), cut).finish()


# ---- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.timeout(60)
@pytest.mark.parametrize("direction", ["down", "up"])
@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_cancelled_in_the_middle_of_a_step_ends_on_all_sides(
    name: str, direction: Any, start: Start, whole: Callable[[str], Recorded]
) -> None:
    expected = whole(name)
    recorder = start(name)
    recorder.at_frame(direction, middle(expected, direction), lambda node: recorder.run.cancelled.set())
    with pytest.raises(RunCancelledError, match="was cancelled"):
        recorder.finish()
    assert len(recorder.recorded.own_rows) < len(expected.own_rows)
