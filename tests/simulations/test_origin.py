"""A directory never shows the result of other code or other data as that of today's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from farshore.core.errors import ConfigError
from farshore.core.workloads import load
from farshore.runs.directory import RunDirectory
from farshore.simulations import origin
from farshore.simulations.origin import differences, origin_of
from farshore.simulations.run_directories import open_or_create
from farshore.simulations.trial import folder_of

METHOD = """
import torch
from farshore.engines.federated.config import FederatedConfig
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.supervised import Supervised
from farshore.engines.federated.workload import FederatedWorkload


class Mine(FederatedWorkload[FederatedConfig]):
    name, summary, config = "mine", "", FederatedConfig

    def task(self, config, seed, find, population):
        x = torch.linspace(-1, 1, 20).reshape(-1, 1)
        parts = [torch.arange(i, 20, population).numpy() for i in range(population)]
        return Supervised(x, (x[:, 0] > 0).long(), x, (x[:, 0] > 0).long(), parts, seed,
                          lambda: torch.nn.Linear(1, 2), lambda _: Sgd(0.1))


WORKLOAD = Mine()
"""


def info(seed: int) -> dict[str, Any]:
    return {"workload": "ping", "config": {}, "seed": seed}


def simulate(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "farshore", "simulate", str(folder / "scenario.yaml")]
    return subprocess.run([*command, "--out", str(folder / "out")], capture_output=True, text=True, cwd=folder)


@pytest.mark.process
@pytest.mark.timeout(110)
def test_a_changed_method_file_is_not_answered_with_the_old_result(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project.entry-points."farshore.workloads"]\nmine = "mine:WORKLOAD"\n')
    (tmp_path / "scenario.yaml").write_text(
        "method: mine\nclients: 2\nsettings: {rounds: 1, per_round: 2}\narms: {one: {}}\n"
    )
    (tmp_path / "mine.py").write_text(METHOD)
    first = simulate(tmp_path)
    assert first.returncode == 0, first.stderr
    assert simulate(tmp_path).returncode == 0  # the same: its result is shown
    (tmp_path / "mine.py").write_text(METHOD.replace("Sgd(0.1)", "Sgd(0.2)"))
    changed = simulate(tmp_path)
    assert changed.returncode == ConfigError.exit_code
    assert "differs in the method's code" in changed.stderr
    assert "--out DIR" in changed.stderr


def test_changed_data_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "a.txt").write_text("one")
    ping = load("ping")
    before = origin_of(ping, {"text": data})
    run = open_or_create(folder, info(1), before)
    assert open_or_create(folder, info(1), before).path == run.path
    origin._content.cache_clear()
    (data / "sub" / "a.txt").write_text("two")
    after = origin_of(ping, {"text": data})
    with pytest.raises(ConfigError, match="holds a run that differs in the data set 'text'"):
        open_or_create(folder, info(1), after)
    with pytest.raises(ConfigError, match="differs in seed"):
        open_or_create(folder, info(2), before)
    # For a data set above the limit, file sizes and modification times are hashed instead of the contents.
    monkeypatch.setattr(origin, "_MOST_READ", 1)
    origin._content.cache_clear()
    by_time = origin_of(ping, {"text": data})["data"]["text"]
    assert by_time not in (before["data"]["text"], after["data"]["text"])


def test_differences_are_said_in_words() -> None:
    old = {"code": {"farshore": "1"}, "data": {"a": "x"}, "versions": {"torch": "2.11"}}
    new = {"code": {"farshore": "2", "method": "3"}, "data": {"b": "x"}, "versions": {"torch": "2.12"}}
    assert differences(old, new) == [
        "farshore's code", "the method's code", "the data set 'a'", "the data set 'b'", "torch (2.11, now 2.12)",
    ]  # fmt: skip
    assert differences(old, old) == []


def test_directories_of_before_still_open(tmp_path: Path) -> None:
    made = origin_of(load("ping"), {})
    RunDirectory.create(tmp_path / "old", {"id": "old", "nodes": [], **info(1), "versions": made["versions"]})
    assert open_or_create(tmp_path / "old", info(1), made)
    RunDirectory.create(tmp_path / "older", {"id": "x", "nodes": [], **info(1), "versions": {"torch": "1.0"}})
    with pytest.raises(ConfigError, match=r"torch \(1.0, now"):
        open_or_create(tmp_path / "older", info(1), made)


def test_arms_with_names_in_any_script_have_folders_of_their_own() -> None:
    names = ["联邦平均", "虚拟数据", "naïve", "nave", "na ve", "a" * 300, "a" * 301]
    folders = [folder_of(name, 0) for name in names]
    assert len(set(folders)) == len(names)
    assert all(folder.isascii() and len(folder) < 140 for folder in folders)
    assert folder_of("SCAFFOLD + VHL", 3) == "scaffold-vhl-seed-3"
