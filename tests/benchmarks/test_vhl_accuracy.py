"""The VHL benchmark: valid arms, gates and table."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import pytest

from farshore.core.workloads import load
from farshore.reports.curves import Curve


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("vhl_accuracy")


def flat(*scores: float) -> Curve:
    return Curve(tuple(range(1, len(scores) + 1)), scores, tuple(10 * i for i in range(1, len(scores) + 1)))


def test_arms_are_valid_and_paired(bench: ModuleType) -> None:
    found = bench.arms()
    assert len(found) == 2 * 4 * 2 + 1
    for name, settings in found.items():
        config = load("vhl").config.model_validate(settings)
        assert config.virtual.enabled == ("VHL" in name)  # type: ignore[attr-defined]
        if name.endswith("+ VHL"):
            alone = found[name.removesuffix(" + VHL")]
            assert (alone["method"], alone["norm"]) == (settings["method"], settings["norm"])


def curves(bench: ModuleType, better: float, shuffled: float) -> dict[str, dict[int, Curve]]:
    """Equal curves for all arms, plus ``better`` with VHL and ``shuffled`` for the control."""
    found = {}
    for name in bench.arms():
        plus = shuffled if name == bench.SHUFFLED else better if "VHL" in name else 0.0
        found[name] = {seed: flat(0.5 + plus, 0.8 + plus, 0.7 + plus) for seed in (0, 1, 2)}
    return found


@pytest.mark.parametrize(
    ("better", "shuffled", "verdicts"),
    [
        (
            0.179,
            0.0,
            [True, True, False, False, True, True],
        ),  # no earlier round is no improvement
        (0.45, 0.0, [True, True, True, True, True, True]),
        (0.03, 0.02, [False, True, False, False, False, False]),
    ],
)
def test_gates_are_judged(bench: ModuleType, better: float, shuffled: float, verdicts: list[bool]) -> None:
    made = curves(bench, better, shuffled)
    found = bench.gates(made, bench.compared(made), judged=True)
    assert [g.holds for g in found] == verdicts
    assert all(g.holds is None for g in bench.gates(made, bench.compared(made), judged=False))


def test_table_rows_compare_an_arm_without_and_with_vhl(bench: ModuleType) -> None:
    made = curves(bench, 0.1, 0.0)
    rows = bench.table(bench.compared(made)).rows
    assert len(rows) == 9
    assert rows[0][:3] == ["BN FedAvg", "3", "80.0 ± 0.0 → 90.0 ± 0.0"]
    assert rows[0][4:] == ["2 (3/3) → 2 (3/3)", "0.0 → 0.0"]
