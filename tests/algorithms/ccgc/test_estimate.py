"""Estimates of long runs from a few epochs: exact on one node, close on several."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from farshore.algorithms.ccgc.config import CCGCConfig
from farshore.core.nodes import DEFAULT_ROLE
from farshore.core.transfer import Transfer
from farshore.core.workloads import load
from farshore.simulations.in_process import InProcessRun
from farshore.simulations.rehearsal import rehearsal_of, rehearse

LONG = {"dim": 8, "epochs": 47, "warmup": 11, "kmeans_every": 9, "log_every": 4, "checkpoint_every": 100}


def both(folder: Path, nodes: int, **settings: Any) -> tuple[list[Transfer], list[dict[str, Any]]]:
    """The ledger of a run and the estimated one."""
    workload = load("ccgc")
    config = CCGCConfig.model_validate({**LONG, "transport": "star", **settings})
    names = tuple(f"n{i}" for i in range(nodes))
    sent: list[Transfer] = []
    InProcessRun(workload, config, folder, names, 3, recorder=sent.append).run()
    found, whole = rehearsal_of(workload, config)
    assert not whole
    assert found.config.epochs < 10, "a few epochs stand for all"  # type: ignore[attr-defined]
    return sent, list(rehearse(workload, found, dict.fromkeys(names, DEFAULT_ROLE), 3, {}).to_pylist())


@pytest.mark.parametrize("warmup", [0, 1, 11])
def test_the_estimate_of_one_node_has_the_frames_of_the_run(tmp_path: Path, warmup: int) -> None:
    sent, planned = both(tmp_path, 1, warmup=warmup)
    frames = Counter((row.kind, row.direction, row.step, row.payload_bytes) for row in sent)
    assert Counter((r["kind"], r["direction"], r["step"], r["payload_bytes"]) for r in planned) == frames


def test_the_estimate_of_two_nodes_is_close(tmp_path: Path) -> None:
    sent, planned = both(tmp_path, 2)
    for kind in ("all_reduce", "all_gather", "all_to_all"):
        expected = sum(row.payload_bytes for row in sent if row.kind == kind)
        assert sum(r["payload_bytes"] for r in planned if r["kind"] == kind) == pytest.approx(expected, rel=0.25), kind


def test_every_epoch_is_counted_once() -> None:
    for settings in ({}, {"warmup": 0}, {"epochs": 100, "warmup": 400}, {"kmeans_every": 1}, {"log_every": 1}):
        config = CCGCConfig.model_validate(settings)
        found = load("ccgc").rehearsal(config)  # type: ignore[attr-defined]
        counted = sorted(step for steps in found.stands_for.values() for step in steps)
        assert counted == list(range(1, config.epochs + 1))
        assert found.config.seed is None
