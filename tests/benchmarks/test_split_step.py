from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("split_step")


def test_the_first_steps_and_the_last_are_not_timed(bench: ModuleType) -> None:
    assert bench.differences([0, 100, 101, 102, 104, 107, 200]) == [1, 2, 3]


def test_the_fastest_repetition_of_each_step_counts_and_totals_are_compared(bench: ModuleType) -> None:
    calls: list[str] = []
    times = {"a": iter([[1.0, 9.0], [5.0, 2.0]]), "b": iter([[1.0, 1.0], [2.0, 2.0]])}

    def part(name: str) -> Callable[[], list[float]]:
        def run() -> list[float]:
            calls.append(name)
            return next(times[name])

        return run

    ours, theirs = bench.turns(2, part("a"), part("b"))
    assert calls == ["a", "b", "b", "a"]
    assert (ours, theirs) == ([1.0, 2.0], [1.0, 1.0])
    assert bench.ratio(ours, theirs) == 1.5
    with pytest.raises(ValueError, match="2 steps against 1"):
        bench.ratio(ours, [1.0])


def test_link_time_is_bytes_over_bandwidth(bench: ModuleType) -> None:
    found = bench.Measured([0.5, 0.5], up=[1_250_000, 0], down=[625_000, 2_500_000])
    assert found.link_seconds == pytest.approx((1.5 + 2) / 2)
    assert found.link_bounds == pytest.approx([1.04, 2.04])


def test_one_process_is_compared_with_the_same_unsplit_steps(
    bench: ModuleType, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--parts", "a", "--steps", "8", "--repeats", "2", "--glue", setting.glue, "--model", setting.model]
    monkeypatch.setattr("sys.argv", ["split_step.py", *map(str, arguments), "--json", str(tmp_path / "s.json")])
    bench.main()
    output = json.loads((tmp_path / "s.json").read_text())
    figures = output["figures"]["one process"]
    # 8 end times give 7 differences, without two warm-up steps and the last one.
    assert len(figures["split_seconds"]) == len(figures["unsplit_seconds"]) == 4
    total = {name: sum(figures[f"{name}_seconds"]) for name in ("split", "unsplit")}
    assert figures["ratio"] == pytest.approx(total["split"] / total["unsplit"])
    assert figures["ratio_of_CPU_time"] > 0
    assert output["gates"][0]["holds"] == (figures["ratio"] <= 1.05)


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(300)
def test_two_processes_and_a_slow_link_are_measured(
    bench: ModuleType, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--parts", "bc", "--steps", "8", "--repeats", "1", "--glue", setting.glue, "--model", setting.model]
    monkeypatch.setattr("sys.argv", ["split_step.py", *map(str, arguments), "--json", str(tmp_path / "s.json")])
    bench.main()
    output = json.loads((tmp_path / "s.json").read_text())
    assert output["figures"]["two processes"]["speed_up"] > 0
    slow = output["figures"]["slow link"]
    assert slow["throttled"] is True
    # The tiny model has 32 fp32 values per token; the recipe's 32 channels of 4 bits are 8 times smaller.
    assert 3 < slow["times_less"] < 8
    assert slow["vanilla_step_seconds"] > slow["step_seconds"]
