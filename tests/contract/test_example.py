"""The example of docs/workload.md is the one in examples/, and does what the page says."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from farshore.simulations.in_process import InProcessRun

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "monte_carlo_pi.py"


@pytest.fixture(scope="module")
def workload() -> Any:
    spec = importlib.util.spec_from_file_location("monte_carlo_pi", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.WORKLOAD


def test_the_page_shows_the_example_as_it_is() -> None:
    assert EXAMPLE.read_text().strip() in (ROOT / "docs" / "workload.md").read_text()
    assert len(EXAMPLE.read_text().splitlines()) <= 70


def test_the_result_does_not_depend_on_nodes_losses_joins_or_resumes(workload: Any, tmp_path: Path) -> None:
    config = workload.config(items=30, points=2000)
    plain = InProcessRun(workload, config, tmp_path / "plain", ("a",)).run()
    assert plain["pi"] == pytest.approx(3.1416, abs=0.05)

    troubled = InProcessRun(workload, config, tmp_path / "troubled", ("a", "b"))

    def trouble(done: int, total: int, values: Mapping[str, Any]) -> None:
        if done == 5:
            troubled.kill("a")
        if done == 9:
            troubled.join("c")
        if done == 20:
            raise RuntimeError("power cut")

    troubled.on_progress = trouble
    with pytest.raises(RuntimeError, match="power cut"):
        troubled.run()
    assert InProcessRun(workload, config, tmp_path / "troubled", ("a", "b")).run() == plain
