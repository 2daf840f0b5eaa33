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


def test_the_results_page_is_up_to_date(bench: ModuleType) -> None:
    assert bench.PAGE.read_text(encoding="utf-8") == bench.page(bench.MEASURED), (
        "docs/results.md is out of date: run python benchmarks/results.py"
    )


def test_measured_commands_contain_no_absolute_paths(bench: ModuleType) -> None:
    for path in bench.MEASURED.glob("*.json"):
        measured = json.loads(path.read_text(encoding="utf-8"))
        assert not any(argument.startswith("/") for argument in measured["command"].split()), path.name


def test_the_page_has_the_output_of_a_script(
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


def test_numbers_of_a_script_without_tables_are_listed(bench: ModuleType, tmp_path: Path) -> None:
    measured = {"benchmark": "wire", "command": "python benchmarks/wire.py", "figures": {"one_way": 0.91, "name": "x"}}
    (tmp_path / "wire.json").write_text(json.dumps(measured))
    assert "| one way | 0.91 |" in bench.page(tmp_path)


def test_unjudged_gates_are_not_missed(script: Callable[[str], ModuleType]) -> None:
    common = script("_common")
    options = argparse.Namespace(json=None, quick=True)
    gates = [common.gate("a", 1.0, "<= 2", None), common.gate("b", None, "<= 2", False)]
    assert common.finish("x", options, scale="", claim="", figures={}, gates=gates) == 0
