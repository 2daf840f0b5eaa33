"""Flower apps on the command line: submitted settings, rejected combinations, and accepted hashes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from farshore.cli import main as cli
from farshore.cli.apps import app_settings
from farshore.cli.code_approval import accepted_apps
from farshore.core.errors import ConfigError, ExitCode
from farshore.engines.flower.config import FlowerRun
from farshore.runs.directory import RunDirectory

APP = Path(__file__).resolve().parents[2] / "engines" / "flower" / "apps" / "message"


def test_settings_are_divided_between_app_and_method() -> None:
    settings = app_settings(APP, ["lr=1", "train.local-steps=3", "up_encoding=fp16"])
    assert settings.run_config == {"lr": 1, "train.local-steps": 3}
    assert (settings.up_encoding, settings.down_encoding) == ("fp16", "raw")
    again = FlowerRun.model_validate_json(settings.model_dump_json())
    assert again == settings
    assert type(again.run_config["lr"]) is int
    with pytest.raises(ConfigError, match=r"did you mean 'train\.local-steps'"):
        app_settings(APP, ["train.local_steps=3"])


def test_simulate_runs_the_flower_app_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("flwr")
    line = ["simulate", str(APP), "--clients", "2", "--set", "nodes=2", "--set", "num-server-rounds=1", "--json"]
    assert cli.execute([*line, "--out", str(tmp_path / "run")]) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (last["result"]["messages"], last["result"]["failures"]) == (4, 0)
    assert RunDirectory.open(tmp_path / "run").info["nodes"] == ["client-0", "client-1"]


@pytest.mark.parametrize("line", [["run", "flower"], ["run", "ping", "--app", str(APP)]])
def test_the_app_option_and_the_flower_method_require_each_other(
    line: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "address").write_text("127.0.0.1:1\n")
    (tmp_path / "admin.token").write_text("t")
    assert cli.execute([*line, "--home", str(tmp_path)]) == ExitCode.CONFIG
    assert "app" in capsys.readouterr().err


def test_accepted_apps_are_hashes_and_ask_requires_a_terminal() -> None:
    assert accepted_apps([]) == (frozenset(), None)
    assert accepted_apps(["AB" * 32]) == (frozenset({"ab" * 32}), None)
    with pytest.raises(ConfigError, match="neither a SHA-256"):
        accepted_apps(["abc"])
    with pytest.raises(ConfigError, match="needs a terminal"):
        accepted_apps(["ask"])
