from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("sft_accuracy")


@pytest.fixture
def trainer(bench: ModuleType, setting: Any, tmp_path: Path) -> Callable[[str], Any]:
    def make(folder: str) -> Any:
        arguments = ["--glue", setting.glue, "--model", setting.model, "--train", 96, "--unused", 50, "--epochs", 3]
        made = bench.Trainer(bench.parse_options([str(word) for word in arguments]), tmp_path / folder)
        made.common["checkpoint_every"] = 4
        return made

    return make


@pytest.fixture
def arms(script: Callable[[str], ModuleType]) -> dict[str, Any]:
    return {arm.name: arm for arm in script("sft_arms").arms()}


class KilledError(Exception):
    """Simulates a kill of the process."""


def test_an_arm_sends_little_more_than_its_codes(trainer: Callable[[str], Any], arms: dict[str, Any]) -> None:
    found = trainer("a").train(arms["recipe r8 int4 L-1"], seed=1)
    assert found.vanilla_bytes > 0
    # 32 fp32 values against 8 of 4 bits: 32 times less, except for lengths and labels, which vanilla sends too.
    assert found.vanilla_bytes / found.code_bytes == pytest.approx(32, rel=0.06)
    assert found.code_bytes < found.payload_bytes < found.frame_bytes
    assert 0 <= found.unused <= 1
    assert found.setup == "96x3"


@pytest.mark.parametrize("name", ["recipe r8 int4 L/2", "unsplit"])
def test_a_killed_arm_resumes_to_the_same_result(
    bench: ModuleType,
    trainer: Callable[[str], Any],
    arms: dict[str, Any],
    name: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    uninterrupted = trainer("whole").train(arms[name], seed=2)
    seen: list[int] = []
    kill_at = 6

    def show(_: object, seed: int, step: int, total: int) -> None:
        seen.append(step)
        if step == kill_at and seen.count(step) == 1:
            raise KilledError

    monkeypatch.setattr(bench, "show", show)
    with pytest.raises(KilledError):
        trainer("killed").train(arms[name], seed=2)
    resumed = trainer("killed").train(arms[name], seed=2)
    assert seen == [1, 2, 3, 4, 5, 6, 5, 6, 7, 8, 9]
    for field in ("dev", "unused", "code_bytes", "payload_bytes", "frame_bytes", "vanilla_bytes"):
        assert getattr(resumed, field) == getattr(uninterrupted, field), field
    assert not any(trainer("killed").folder.iterdir())


def test_a_ledger_with_missing_steps_is_rejected(bench: ModuleType, tmp_path: Path) -> None:
    from farshore.core.errors import DataError
    from farshore.core.transfer import Transfer
    from farshore.runs.ledger import Ledger

    def row(direction: str, kind: str, step: int, micro: int = 0) -> Transfer:
        return Transfer("e", direction, kind, "raw", 0, step, micro, 4, 3, 5, 0, 0.0)  # type: ignore[arg-type]

    with Ledger(tmp_path) as ledger:
        for step in (0, 1, 1):  # step 1 was sent again after a restart
            ledger.record(row("up", "activation", step))
            ledger.record(row("down", "gradient", step))
        ledger.record(row("up", "evaluation", 2))
        ledger.record(row("up", "codec", 0))
    assert bench.training_bytes(tmp_path, 2) == (15, 25)
    with pytest.raises(DataError, match="2 steps, not of 3"):
        bench.training_bytes(tmp_path, 3)


def test_finished_runs_are_not_repeated(
    bench: ModuleType, setting: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--quick", "--glue", setting.glue, "--model", setting.model, "--arms", "recipe r2 int4 L-1"]
    arguments += ["--results", tmp_path / "r.jsonl", "--json", tmp_path / "r.json"]
    monkeypatch.setattr("sys.argv", ["benchmarks/sft_accuracy.py", *map(str, arguments)])
    assert bench.main() == 0
    assert "recipe r2 int4 L-1, seed 0: dev" in capsys.readouterr().out
    output = json.loads((tmp_path / "r.json").read_text())
    assert output["quick"] is True
    assert output["gates"]
    assert all(g["holds"] is None for g in output["gates"])
    assert {row["arm"].partition("#")[0] for row in output["figures"]["rows"]} == {"unsplit", "recipe r2 int4 L-1"}
    assert str(tmp_path) not in output["command"]

    monkeypatch.setattr(bench.Trainer, "train", lambda *_: pytest.fail("all runs had finished"))
    assert bench.main() == 0


def test_gates_are_judged_at_their_scale_only(bench: ModuleType, arms: dict[str, Any]) -> None:
    def row(name: str, lost: float, payload: float, seeds: int = 3) -> dict[str, Any]:
        gap = {"mean": -lost, "n": seeds}
        ratio = 12288 / (arms[name].rank * 4)
        return {
            "arm": arms[name].key,
            "goal": arms[name].goal,
            "gap_dev": gap,
            "gap_unused": gap,
            "code_ratio": ratio,
            "payload_ratio": payload,
        }

    rows = [row("recipe r32 int4 L-1", 0.4, 80), row("recipe r4 int4 L-1", 1.2, 510)]
    verdicts = {g.name.removeprefix("recipe "): g.holds for g in bench.gates(rows, judged=True)}
    assert verdicts == {
        "r32 int4 L-1: points lost on dev": True,
        "r32 int4 L-1: points lost on unused": True,
        "r32 int4 L-1: payload ratio / code ratio": False,
        "r4 int4 L-1: points lost on dev": False,
        "r4 int4 L-1: points lost on unused": False,
        "r4 int4 L-1: payload ratio": True,
    }
    assert all(g.holds is None for g in bench.gates(rows, judged=False))
    few = bench.gates([row("recipe r32 int4 L-1", 0.4, 80, seeds=2)], judged=True)
    assert [g.holds for g in few] == [None, None, False]
