from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("results")


def test_the_page_says_what_was_measured_last(bench: ModuleType) -> None:
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(bench.MEASURED), (
        "docs/results.md is not current: run python benchmarks/results.py"
    )


def test_measurements_name_no_folder_of_the_machine_they_were_made_on(bench: ModuleType) -> None:
    for path in bench.MEASURED.glob("*.json"):
        told = json.loads(path.read_text(encoding="utf-8"))
        assert not any(word.startswith("/") for word in told["command"].split()), path.name


def test_what_a_script_writes_is_on_the_page(
    bench: ModuleType, script: Callable[[str], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = script("_common")
    monkeypatch.setattr("sys.argv", ["/somewhere/benchmarks/split_step.py", "--glue", "/home/me/glue", "--steps=4"])
    gates = [
        common.gate("step", 1.02, "<= 1.05", True),
        common.gate("speed", 1.1, ">= 1.3", False),
        common.gate("points", 3.0, "<= 1", None),
    ]
    table = common.Table("Times", ["part", "value"], [["one process", "0.3"]])
    options = argparse.Namespace(json=tmp_path / "a.json", quick=False)
    code = common.finish(
        "split_step", options, scale="4 steps", claim="1.05", figures={"x": 1}, gates=gates, tables=[table]
    )
    assert code == 1
    page = bench.page(tmp_path)
    assert "python benchmarks/split_step.py --glue …/glue --steps=4" in page
    assert "| step | 1.02 | <= 1.05 | holds |" in page
    assert "| speed | 1.1 | >= 1.3 | **missed** |" in page
    assert "| points | 3 | <= 1 | not judged |" in page
    assert "| one process | 0.3 |" in page
    assert "**Scale**: 4 steps" in page
    assert f"Python {common.machine()['python']}" in page


def test_a_script_without_tables_gets_its_numbers_listed(bench: ModuleType, tmp_path: Path) -> None:
    told = {"benchmark": "wire", "command": "python benchmarks/wire.py", "figures": {"one_way": 0.91, "name": "x"}}
    (tmp_path / "wire.json").write_text(json.dumps(told))
    assert "| one way | 0.91 |" in bench.page(tmp_path)


def test_no_goal_is_missed_where_none_is_judged(script: Callable[[str], ModuleType]) -> None:
    common = script("_common")
    options = argparse.Namespace(json=None, quick=True)
    gates = [common.gate("a", 1.0, "<= 2", None), common.gate("b", None, "<= 2", False)]
    assert common.finish("x", options, scale="", claim="", figures={}, gates=gates) == 0
