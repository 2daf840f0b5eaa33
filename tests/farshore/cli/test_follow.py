"""Following a run: rates, estimated time left, and the displays."""

from __future__ import annotations

import json

import pytest

from farshore.cli.follow import check_ended, logs, progress_values
from farshore.cli.output import duration
from farshore.cli.progress import JsonDisplay, Meter, PlainDisplay, Progress
from farshore.cli.trials import JsonTrials, LiveTrials, PlainTrials
from farshore.core.errors import RunCancelledError, RunFailedError
from farshore.proto import control_pb2 as pb
from farshore.simulations.trial import Trial


def run(done: int, state: str = "running", **values: float) -> pb.RunInfo:
    return pb.RunInfo(id="r", state=state, done=done, total=100, progress_json=json.dumps(values))


def read(meter: Meter, info: pb.RunInfo, now: float) -> Progress:
    return meter.read(info.done, info.total, progress_values(info), now, info.state, info.reason)


def test_the_rate_uses_recent_steps_and_determines_the_time_left() -> None:
    meter = Meter()
    assert read(meter, run(0), 0.0).eta is None
    assert read(meter, run(5), 11.0).eta is None, "the time before the first step does not count"
    assert read(meter, run(10), 12.0).rate == 5.0
    for step in range(11, 90):
        last = read(meter, run(step, loss=0.25), 12.0 + (step - 10) * 2.0)
    assert last.rate == pytest.approx(0.5)
    assert last.eta == pytest.approx(22.0)
    assert last.loss == 0.25


def test_a_restart_from_a_checkpoint_resets_the_rate() -> None:
    meter = Meter()
    read(meter, run(10), 0.0)
    read(meter, run(50), 1.0)
    assert read(meter, run(40), 2.0).rate == 0.0
    assert read(meter, run(41), 3.0).rate == 1.0


def test_before_the_first_step_the_line_shows_state_and_reason() -> None:
    waiting = Progress("waiting", "waiting for 1 of 2 nodes; connected: a", 0, 0, None, 0, 0, 0.0)
    assert waiting.line() == "waiting: waiting for 1 of 2 nodes; connected: a"
    running = Progress("running", "", 3, 12, 0.5, 1_500_000, 20_000, 1.5)
    assert running.line() == "step 3/12  loss 0.500  1.5 steps/s  up 1.50 MB  down 20.0 kB  ETA 6 s"


def test_a_federated_run_shows_rounds_and_client_outcomes() -> None:
    values = {"loss": 0.5, "acc": 0.875, "ok": 8.0, "late": 1.0, "failed": 2.0, "seconds": 3.21}
    progress = pb.RunInfo(id="r", state="running", done=3, total=3)
    progress.progress_json = json.dumps({**values, "unit": "round", "frame_up": 1_500_000, "frame_down": 20_000})
    line = read(Meter(), progress, 0.0).line()
    assert line == ("round 3/3  clients 8 ok, 1 late, 2 failed  loss 0.500  acc 87.5%  3.2 s  up 1.50 MB  down 20.0 kB")


def test_plain_output_has_each_state_and_the_last_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with PlainDisplay("run r") as shown:
        shown.show(Progress("waiting", "for nodes", 0, 0, None, 0, 0, 0.0))
        for step in range(1, 500):
            shown.show(Progress("running", "", step, 500, 0.1, 0, 0, 9.0))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "run r: waiting: for nodes"
    assert "step 1/500" in lines[1]
    assert "step 499/500" in lines[-1]
    assert len(lines) < 6, "a pipe must not get a line per step"


def test_a_run_that_did_not_finish_raises_an_error() -> None:
    check_ended(run(100, "finished"))
    with pytest.raises(RunFailedError) as caught:
        check_ended(run(3, "interrupted"))
    assert caught.value.hint == "farshore runs resume r"
    with pytest.raises(RunCancelledError):
        check_ended(run(3, "cancelled"))


def test_all_log_lines_are_yielded() -> None:
    class Admin:
        def follow(self, run_id: str, *, follow: bool, logs: bool) -> list[pb.RunEvent]:
            assert (run_id, follow, logs) == ("r", False, True)
            return [pb.RunEvent(run=run(1, "finished"), log=["a", "b"]), pb.RunEvent(log=["c"])]

    assert list(logs(Admin(), "r", wait=False)) == ["a", "b", "c"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "text"), [(-1, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")])
def test_durations_are_formatted(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_simulated_trials_are_displayed_like_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trial = Trial("FedAvg", 3, "/nowhere", "vhl", {}, 10, {})
    values = {"unit": "round", "loss": 0.5, "ok": 4, "late": 1, "failed": 0, "seconds": 2.0}
    event = {"type": "progress", "done": 2, "total": 4, "values": {**values, "frame_up": 1_500_000, "frame_down": 2e4}}
    line = "round 2/4  clients 4 ok, 1 late, 0 failed  loss 0.500  2.0 s  up 1.50 MB  down 20.0 kB"
    now = 1.0
    monkeypatch.setattr("farshore.cli.trials.time.monotonic", lambda: now)
    with PlainTrials(1) as plain:
        plain.event(trial, {"type": "begun"})
        plain.event(trial, event)
        now = 185.0
        plain.event(trial, {"type": "finished", "result": {}})
    monkeypatch.undo()
    assert capsys.readouterr().out.splitlines() == [f"FedAvg, seed 3: {line}", "[1/1] FedAvg, seed 3: 3 min 04 s"]
    with JsonTrials() as shown, JsonDisplay() as run_display:
        shown.event(trial, event)
        run_display.show(Meter().read(2, 4, event["values"], 0.0))
    of_trial, of_run = map(json.loads, capsys.readouterr().out.splitlines())
    assert of_trial.items() >= of_run.items()
    assert (of_trial["arm"], of_trial["seed"], of_run["up_bytes"]) == ("FedAvg", 3, 1_500_000)


def test_a_terminal_shows_one_bar_per_trial_with_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    trial = Trial("FedAvg", 3, "/nowhere", "vhl", {}, 10, {})
    with LiveTrials(2) as live:
        live.event(trial, {"type": "begun"})
        live.event(trial, {"type": "progress", "done": 1, "total": 4, "values": {"loss": 0.5, "frame_up": 1000}})
        (total_bar, trial_bar) = live._bars.tasks
        assert trial_bar.fields["figures"] == "loss 0.500"
        live.event(trial, {"type": "progress", "done": 2, "total": 4, "values": {"frame_up": 1000, "frame_down": 10}})
        assert "up 1.00 kB  down 10 B" in trial_bar.fields["figures"]
        assert (trial_bar.completed, total_bar.completed) == (2, 0.5)
