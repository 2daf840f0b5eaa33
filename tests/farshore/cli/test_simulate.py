"""``farshore simulate``, from a scenario to a table and a plot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from farshore.cli import main as cli
from farshore.core.errors import ExitCode
from farshore.runs.directory import RunDirectory


@pytest.fixture(autouse=True)
def own_project(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Run each test in a new folder, and unregister its project afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FARSHORE_PROJECT", "")
    monkeypatch.setattr(sys, "path", list(sys.path))


def test_the_summary_names_the_files_of_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    arm = "{rounds: 2, per_round: 2, local_epochs: 1, batch: 256, client_eval_every: 2}"
    Path("s.yaml").write_text(f"method: vhl\narms: {{a: {arm}}}\nclients: 4\nseeds: [0]\n")
    assert cli.execute(["simulate", "s.yaml", "--out", "out"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("files of a run")]
    names = [name.strip() for name in line.removeprefix("files of a run").split(",")]
    assert {"metrics.jsonl", "clients.jsonl", "partition.json", "virtual.json", "ledger-*.arrows"} <= set(names)
    assert {"states/best.safetensors", "states/last.safetensors"} <= set(names)
    assert all(list(Path("out/a-seed-0").glob(name)) for name in names)


def test_a_failed_trial_is_reported_by_arm_and_seed(capsys: pytest.CaptureFixture[str]) -> None:
    """A missing data set is reported in one line with arm, seed, cause and hint."""
    command = ["simulate", "vhl", "--arm", "FedAvg", "--seeds", "1", "--set", "dataset=cifar10", "--out", "out"]
    assert cli.execute(command) == ExitCode.DATA
    message = capsys.readouterr().err
    assert "FedAvg, seed 1" in message
    assert "--data cifar10=PATH" in message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "farshore simulate vhl"),
        (["vhl", "--arm", "fedavg"], "FedAvg + VHL"),
        (["vhl", "--seeds", "0;1"], "comma-separated"),
        (["vhl", "--backend", "spark"], "--backend ray"),
        (["vhl", "--address", "here:1"], "--backend ray"),
        (["vhl", "--set", "lrr=1"], "did you mean 'lr'"),
    ],
)
def test_invalid_arguments_get_a_hint(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.execute(["simulate", *arguments]) == ExitCode.CONFIG
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
def test_a_killed_simulation_resumes_to_the_same_bits() -> None:
    """After a kill past the first checkpoint, the same command gives the bits of an uninterrupted run."""
    scenario = "method: vhl\narms: {a: {method: scaffold, rounds: 6, checkpoint_every: 2, per_round: 3}}\nclients: 4\n"
    Path("s.yaml").write_text(scenario)
    command = [sys.executable, "-m", "farshore", "simulate", "s.yaml", "--json", "--out"]
    process = subprocess.Popen([*command, "killed"], stdout=subprocess.PIPE, text=True, env=dict(os.environ))
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "progress" and json.loads(line)["done"] == 3:
            process.kill()
            break
    process.wait()
    assert RunDirectory.open(Path("killed/a-seed-0")).result is None
    for folder in ("killed", "whole"):
        subprocess.run([*command, folder], check=True, capture_output=True)
    whole, killed = (RunDirectory.open(Path(f, "a-seed-0")) for f in ("whole", "killed"))
    assert killed.result == whole.result
    for step in whole.checkpoints.steps():
        mine, other = (r.checkpoints.load(step)[0] for r in (whole, killed))
        assert mine.keys() == other.keys()
        assert all((mine[name] == other[name]).all() for name in mine)
    assert Path("killed/comparison.json").read_text() == Path("whole/comparison.json").read_text()


def test_a_method_without_a_score_gets_a_table_of_its_values_bytes_and_virtual_time(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("s.yaml").write_text(
        "method: ping\nnodes: 2\nseeds: [0, 1]\nsettings: {rounds: 2}\n"
        "arms: {small: {kilobytes: 10}, large: {kilobytes: 100}}\n"
        "devices: {population: {groups: [{profile: {link: {latency_ms: 20, up_mbps: 8}}}]}, seconds_per_step: 1}\n"
    )
    assert cli.execute(["simulate", "s.yaml", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    rows = {line[:16].strip(): line[16:].split() for line in printed.splitlines() if line[:1].strip()}
    assert rows["rtt_ms"] == ["1040", "1040"]  # two latencies and the cost of a round
    assert rows["payload in all"] == ["81.9", "kB", "819", "kB"]
    # Rounds of four messages with two nodes, one after the other: the second message of a node costs the round.
    (small, large) = json.loads(Path("out/comparison.json").read_text())["results"]
    assert 2 * 2 * (4 * 0.02 + 1) < small["seconds"] < large["seconds"] < small["seconds"] + 2 * 2 * 0.1
    for arm in ("small", "large"):
        run = RunDirectory.open(Path(f"out/{arm}-seed-1"))
        assert run.info["nodes"] == ["node-1", "node-2"]
        assert run.result is not None
        assert run.result["nodes"]["node-1"]["rtt_ms"] == pytest.approx(1040, abs=0.1)
    assert cli.execute(["report", "out/small-seed-0"]) == 0
    assert "node-2" in capsys.readouterr().out


def test_nodes_and_devices_are_options_of_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", "ping", "--set", "rounds=1", "--out", "out", "--json"]
    assert cli.execute([*command, "--nodes", "3", "--devices", "one-straggler", "--seconds-per-step", "0.5"]) == 0
    compared = json.loads(capsys.readouterr().out.splitlines()[-1])
    # Three nodes, one of which computes 20 times as slowly as the others.
    assert compared["results"][0]["seconds"] == pytest.approx(0.5 * (20 + 1 + 1))
    assert json.loads(Path("out/ping-seed-0/run.json").read_text())["nodes"] == ["node-1", "node-2", "node-3"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["flower"], "farshore simulate FOLDER"),
        (["split_segment"], "farshore server up"),
        (["dp_kfac", "--set", "transport=peers"], "transport=star"),
        (["ping", "--nodes", "camera=2"], "no role 'camera'"),
        (["ping", "--nodes", "2..4"], "nodes do not join here"),
        (["ping", "--nodes", "2", "--clients", "2"], "give one of them"),
        (["ping", "--seconds-per-step", "1"], "--devices NAME"),
        (["ping", "--devices", "phones-4g", "--seconds-per-step", "0"], "is not a duration"),
        (["vhl", "--nodes", "camera=2"], "clients have no roles"),
    ],
)
def test_what_cannot_be_simulated_is_refused_before_anything_starts(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.execute(["simulate", *arguments, "--out", "out"]) == ExitCode.CONFIG
    assert message in " ".join(capsys.readouterr().err.split())
    assert not Path("out").exists()
