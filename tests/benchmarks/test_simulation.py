"""The simulator benchmark: model sizes, client data, and gates on medians."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def bench(script: Callable[[str], ModuleType]) -> ModuleType:
    return script("simulation")


def test_models_have_their_documented_sizes(bench: ModuleType) -> None:
    work = sys.modules["peers.work"]
    sizes = {w.model: sum(p.numel() for p in work.build(w).parameters()) for w in (*bench.SMALL, bench.LARGE[0])}
    assert sizes == {"logistic": 7_850, "small_cnn": 6_930, "cifar_cnn": 1_626_442}
    assert sum(p.numel() for p in work.build(bench.ECHOES[0]).parameters()) == 10_000


def test_client_windows_are_within_the_images(bench: ModuleType) -> None:
    work = sys.modules["peers.work"]
    unequal = bench.LARGE[1]
    windows = [unequal.window(client) for client in range(unequal.clients)]
    assert all(first >= 0 and first + count <= work.IMAGES and count > 0 for first, count in windows)
    counts = [count for _, count in windows]
    assert 45 < sum(counts) / len(counts) < 55
    assert max(counts) > 3 * min(counts)
    assert windows == [unequal.window(client) for client in range(unequal.clients)]
    assert {bench.LARGE[0].window(client)[1] for client in range(1000)} == {50}
    assert work.Work.loads(unequal.dumps()) == unequal


def test_gates_are_judged_on_medians(bench: ModuleType) -> None:
    measured = sys.modules["peers.measure"]
    made = bench.Bench(argparse.Namespace(quick=False), measured.Peers(None), Path())
    for work in (*bench.ECHOES, bench.CROWD, *bench.SMALL, *bench.LARGE):
        for system, times in {"farshore": 1.0, "flower": 25.0, "pfl": 2.0, "bare": 0.97}.items():
            costs = [measured.Cost(cpu, 1.0, 1, 1.0) for cpu in (times, times, 100 * times)]
            made.costs[work.name, system] = costs
    verdicts = [(g.name.split(":")[1].strip(), g.holds) for g in bench.gates(made, judged=True)]
    assert {holds for name, holds in verdicts if name.startswith("Flower")} == {True}
    assert [holds for name, holds in verdicts if name.startswith("pfl / farshore")] == [False] * 6 + [True] * 2
    assert [holds for name, holds in verdicts if name == "farshore / bare training loop"] == [True, False, False]
    assert verdicts[-1] == ("CPU seconds of start-up (three processes that import torch)", True)
    # What any simulator could gain is known beside, and is no goal.
    limits = [(name, holds) for name, holds in verdicts if name.startswith("pfl / bare")]
    assert len(limits) == 7
    assert {holds for _, holds in limits} == {None}
    assert all(g.holds is None for g in bench.gates(made, judged=False))
    assert len(bench.table(made).rows) == 4 * 9 + 4
