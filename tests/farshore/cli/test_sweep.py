"""``farshore sweep``: its arguments, the sweep on this machine, its table and files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from farshore.cli import connect as connecting
from farshore.cli.main import execute
from farshore.cli.sweep_runs import check_nodes
from farshore.cli.sweep_settings import read_sweep
from farshore.core.errors import ConfigError, ExitCode
from farshore.proto.control_pb2 import NodeInfo, NodeProfile
from farshore.simulations.sweeps.config import SweepConfig

TRAIN = ["--set", "model=mlp", "--set", "train_samples=160", "--set", "batch=16", "--set", "steps=4"]
PING = ["ping", "--grid", "rounds=1,2", "--grid", "kilobytes=1..2", "--seeds", "0,1"]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what commands write in the folder of the test, and let no command reach a server."""
    monkeypatch.setenv("FARSHORE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(connecting, "connect", lambda **given: pytest.fail("the server was asked"))


def read(name: str, *grid: str, set_: tuple[str, ...] = (), **options: Any) -> SweepConfig:
    return read_sweep(name, grid, set_, options)


# ---- arguments -------------------------------------------------------------------------------------------------------


def test_values_are_those_that_the_method_reads() -> None:
    config = read("data_parallel", "lr=1e-3,0.01", "betas=[0.9,0.99],[0.8,0.9]", "nesterov=yes,no", set_=("model=mlp",))
    assert config.grid == {"lr": (0.001, 0.01), "betas": ([0.9, 0.99], [0.8, 0.9]), "nesterov": (True, False)}
    assert config.settings == {"model": "mlp"}, "what is swept is not also a setting of all cells"
    assert config.count == 8


def test_sections_keep_what_is_not_swept() -> None:
    config = read("vhl", "virtual.batch=8,16", set_=("per_round=1", "virtual.per_class=4"))
    assert config.settings == {"per_round": 1, "virtual": {"per_class": 4}}
    assert read("vhl", "virtual.batch=8,16", set_=("per_round=1",)).settings == {"per_round": 1}


def test_ranges_are_expanded() -> None:
    assert read("ping", "rounds=1..3,7").grid == {"rounds": (1, 2, 3, 7)}


def test_a_cell_may_need_the_settings_of_its_own_cell_only() -> None:
    """``early_stop`` needs ``eval_every``, which is swept too."""
    config = read("data_parallel", "early_stop=1,2", "eval_every=5,10")
    assert config.count == 4


def test_a_scenario_file_is_overridden_by_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "s.yaml"
    file.write_text("method: ping\nsettings: {pause_ms: 1}\ngrid: {rounds: 1..3, kilobytes: [1, 2]}\nseeds: 0..4\n")
    config = read(str(file), "kilobytes=8", set_=("checkpoint_every=3",))
    assert config.grid == {"rounds": (1, 2, 3), "kilobytes": (8,)}
    assert config.seeds == (0, 1, 2, 3, 4)
    assert {k: config.settings[k] for k in ("pause_ms", "checkpoint_every")} == {"pause_ms": 1.0, "checkpoint_every": 3}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pingg"], "did you mean 'ping'"),
        (["ping", "--grid", "round=1,2"], "did you mean 'rounds'"),
        (["ping", "--grid", "rounds=1,many"], "'rounds'"),
        (["ping", "--grid", "rounds=1,,2"], "a value is empty"),
        (["ping", "--grid", "rounds"], "KEY=VALUE,VALUE"),
        (["ping", "--grid", "rounds=5..1"], "5..1 is empty"),
        (["ping", "--grid", "rounds=1,1"], "twice"),
        (["ping", "--grid", "rounds=1", "--grid", "rounds=2"], "--grid gives 'rounds' twice"),
        (["ping", "--set", "rouns=1"], "did you mean 'rounds'"),
        (["ping", "--seeds", "0..x"], "not a list of seeds"),
        (["ping", "--best", "maxx"], "did you mean 'max'"),
        (["ping", "--halving", "rounds=1..4"], "give the metric"),
        (["ping", "--halving", "round=1..4", "--metric", "acc"], "did you mean 'rounds'"),
        (["data_parallel", "--grid", "optimizer=sgd,adamx"], "did you mean 'adam'"),
        (["vhl"], "'vhl' cannot be swept"),
        (["ping", "--local", "--nodes", "3"], "--local uses this machine only"),
        (["ping", "--out", "x"], "--out is for sweeps with --local"),
        (["ping", "--csv", "nowhere/x.csv"], "does not exist"),
        (["ping", "--picture", "x.bmp"], "unknown format"),
        (["x.yaml"], "cannot read"),
    ],
)
def test_wrong_arguments_get_one_line_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert execute(["sweep", *arguments]) in (ExitCode.CONFIG, ExitCode.NOT_FOUND)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) <= 2
    assert message in " ".join(lines)


def node(name: str, state: str = "connected", data: tuple[str, ...] = (), **profile: Any) -> NodeInfo:
    return NodeInfo(name=name, state=state, data=data, profile=NodeProfile(**profile))


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        ([], "no node is connected"),
        ([node("a", "lost")], "no node is connected"),
        ([node("a", packages=["sklearn"])], "a lacks torch"),
        ([node("a", methods=["ping", "sweep"])], "a does not know the method 'data_parallel'"),
        ([node("a", data=("cifar100",)), node("b")], "a has no data set 'cifar10' (did you mean 'cifar100'?)"),
    ],
)
def test_a_sweep_that_no_connected_node_can_run_is_refused_with_the_reason(nodes: list[NodeInfo], message: str) -> None:
    config = SweepConfig(method="data_parallel", settings={"dataset": "cifar10"})
    with pytest.raises(ConfigError) as error:
        check_nodes(config, nodes)
    assert message in error.value.message
    check_nodes(config, [*nodes, node("able", data=("cifar10",))])


# ---- on this machine -------------------------------------------------------------------------------------------------


def test_a_sweep_on_this_machine_prints_its_cells_and_writes_its_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    files = ["--csv", "s.csv", "--json-file", "s.json", "--picture", "s.svg"]
    command = ["sweep", "data_parallel", *TRAIN, "--grid", "lr=0.001,0.1", "--seeds", "0..1", "--local", *files]
    assert execute([*command, "--metric", "loss"]) == 0
    out = capsys.readouterr().out
    assert "2 cells x 2 seeds" in out
    table = json.loads((tmp_path / "s.json").read_text())
    assert table["compared"] == "loss"
    means = {cell["cell"]["lr"]: cell["mean"]["loss"] for cell in table["cells"]}
    losses = [row["metrics"]["loss"] for row in table["rows"] if row["cell"]["lr"] == 0.1]
    assert means[0.1] == pytest.approx(sum(losses) / 2)
    best = min(means, key=lambda lr: means[lr])
    assert table["best_cell"] == {"lr": best}
    (marked,) = [line for line in out.splitlines() if line.startswith("*")]
    assert f"{best:g}" in marked
    assert " ± " in marked
    assert len((tmp_path / "s.csv").read_text().splitlines()) == 5
    assert (tmp_path / "s.svg").read_text().startswith("<?xml")


def test_failed_items_fail_the_command_after_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "data_parallel", *TRAIN, "--grid", "dataset=digits,cifar10", "--local", "--tries", "1"]
    assert execute(command) == ExitCode.RUN_FAILED
    captured = capsys.readouterr()
    assert "best: dataset=digits" in captured.out
    assert "1 of 2 items failed" in captured.err
    assert "cifar10" in captured.err


def test_json_output_has_the_table_as_its_last_event(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["sweep", *PING, "--local", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert events[-1]["event"] == "swept"
    assert len(events[-1]["rows"]) == 8
    assert [event["done"] for event in events if event["event"] == "progress"][-1] == 8


def test_a_finished_directory_is_not_overwritten_and_shown_again_with_resume(
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["sweep", *PING, "--local", "--out", "dir", "--json"]
    assert execute(command) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert execute(command) == ExitCode.CONFIG
    assert "--resume" in capsys.readouterr().err
    assert execute([*command, "--resume"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["rows"] == first["rows"]


def test_resume_without_an_unfinished_sweep_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["sweep", *PING, "--local", "--resume"]) == ExitCode.NOT_FOUND
    assert "no unfinished sweep" in capsys.readouterr().err


def test_a_metric_that_no_item_has_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["sweep", "data_parallel", *TRAIN, "--local", "--metric", "los", "--csv", "s.csv"]
    assert execute(command) == ExitCode.CONFIG
    assert "did you mean 'loss'" in capsys.readouterr().err
    assert Path("s.csv").exists(), "what was computed is not lost"
