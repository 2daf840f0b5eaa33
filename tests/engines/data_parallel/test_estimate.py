"""Traffic estimates of data-parallel runs agree with what the runs send."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from farshore.core import workloads
from farshore.core.errors import ConfigError, DataError
from farshore.core.seeds import Seed
from farshore.core.traffic_plan import Setting, SupportsTrafficPlan, TrafficPlan
from farshore.engines.data_parallel.baseline import baselines
from farshore.reports.estimate import planned_ledger
from farshore.runs.directory import RunDirectory
from farshore.runs.traffic import CHANNEL_KINDS

CONFIG = {"model": "mlp", "steps": 9, "batch": 8, "log_every": 4, "eval_every": 5, "checkpoint_every": 4}
KFAC = {"factor_steps": 2, "inv_steps": 4}
#: Method, settings and number of nodes.
CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "through the server": ("data_parallel", {"transport": "star"}, 3),
    "accumulation, averages, best states": (
        "data_parallel",
        {
            "transport": "star",
            "optimizer": "adamw",
            "accumulate": 2,
            "ema": 0.9,
            "clip": 1.0,
            "keep_best": True,
            "early_stop": 5,
        },
        2,
    ),
    "node to node, owner exchange": ("dp_kfac", {**KFAC, "transport": "peers"}, 3),
}
SLOW_CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "one node": ("data_parallel", {"transport": "star"}, 1),
    "node to node": ("data_parallel", {"transport": "peers", "model": "resnet20", "steps": 4}, 3),
    "best states, node to node": (
        "data_parallel",
        {"transport": "peers", "keep_best": True, "early_stop": 5, "model": "resnet20", "steps": 6, "accumulate": 2},
        2,
    ),
    "a preconditioner as a setting": (
        "data_parallel",
        {
            "transport": "star",
            "preconditioner": "dp_kfac",
            "preconditioning": KFAC,
            "accumulate": 2,
            "precision": "bf16",
        },
        2,
    ),
    "fp16": ("data_parallel", {"transport": "star", "compression": "fp16"}, 2),
    "PowerSGD": ("data_parallel", {"transport": "peers", "compression": "powersgd", "powersgd_start": 3}, 2),
    "owner exchange through the server": ("dp_kfac", {**KFAC, "transport": "star", "model": "resnet20", "steps": 6}, 2),
    "shared factors": ("dp_kfac", {**KFAC, "transport": "peers", "factor_source": "reduce", "symmetry_aware": True}, 3),
    "rotating owners": ("dp_kfac", {**KFAC, "transport": "peers", "factor_source": "rotate", "steps": 18}, 3),
    "inverses on all ranks": (
        "dp_kfac",
        {**KFAC, "transport": "star", "strategy": "comm_opt", "grad_exchange": "allreduce"},
        2,
    ),
    "hybrid": ("dp_kfac", {**KFAC, "transport": "star", "strategy": "hybrid", "grad_exchange": "allreduce"}, 4),
    "sampled labels": ("dp_kfac", {**KFAC, "transport": "peers", "fisher": "mc1", "inverse": "cholesky"}, 2),
}


def planned(method: str, config: Mapping[str, Any], names: tuple[str, ...]) -> TrafficPlan:
    workload = workloads.load(method)
    assert isinstance(workload, SupportsTrafficPlan)
    return workload.plan(workload.config(**config), Setting(names, Seed(7), Path, {}))


def sums(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[Any, ...]]:
    """Sum dense and payload bytes by node, direction, kind, encoding and step; count the messages with a payload."""
    found: Counter[tuple[Any, ...]] = Counter()
    for row in rows:
        if row["kind"] not in CHANNEL_KINDS and row["payload_bytes"]:
            key = tuple(row[name] for name in ("node", "direction", "kind", "encoding", "step"))
            found[*key, "dense"] += row["dense_bytes"]
            found[*key, "payload"] += row["payload_bytes"]
            found[*key, "messages"] += 1
    return found


def check(cloud: Any, method: str, changes: Mapping[str, Any], count: int) -> None:
    config, names = {**CONFIG, **changes}, tuple("abcd"[:count])
    plan = planned(method, config, names)
    expected = planned_ledger(plan).to_pylist()
    cloud.join(*names)
    info = cloud.when(cloud.submit(config, method=method, count=count), "finished", seconds=120)
    rows = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    assert sums(expected) == sums(rows)
    assert plan.baselines == json.loads(info.result_json)["baselines"]
    planned_rows, sent_rows = ([row for row in some if row["kind"] not in CHANNEL_KINDS] for some in (expected, rows))
    if changes["transport"] == "star":  # peers: the number of store requests varies
        assert len(planned_rows) == len(sent_rows)
        assert sum(r["frame_bytes"] for r in planned_rows) == pytest.approx(
            sum(r["frame_bytes"] for r in sent_rows), rel=2e-3
        )


@pytest.mark.process
@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", CASES)
def test_a_run_sends_what_was_estimated(cloud: Any, case: str) -> None:
    check(cloud, *CASES[case])


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.timeout(240)
@pytest.mark.parametrize("case", SLOW_CASES)
def test_a_run_sends_what_was_estimated_with_other_settings(cloud: Any, case: str) -> None:
    check(cloud, *SLOW_CASES[case])


def test_the_baseline_counts_each_step_once_with_its_number_of_ranks() -> None:
    formed = [(0, 4, "peers"), (20, 3, "peers"), (30, 4, "star")]
    # A ring of P ranks sends 2 (P - 1) n; the star n up and n down for each rank.
    assert baselines(formed, 40, 100) == {"plain data-parallel SGD": 4 * 100 * (20 * 6 + 10 * 4 + 10 * 8)}
    assert baselines([(7, 2, "peers")], 10, 100) == baselines([(0, 2, "peers")], 10, 100)
    assert baselines([(0, 1, "star")], 10, 100) == {"plain data-parallel SGD": 0}


def test_transport_auto_is_estimated_as_star_with_a_note() -> None:
    plan = planned("data_parallel", CONFIG, ("a", "b"))
    assert not plan.peers
    assert len(plan.notes) == 1
    assert "transport=peers" in plan.notes[0]
    assert not planned("data_parallel", CONFIG, ("a",)).notes


def test_bounds_are_named_as_such() -> None:
    plan = planned("data_parallel", {**CONFIG, "keep_best": True, "early_stop": 3}, ("a",))
    assert [note for note in plan.notes if "upper bound" in note] == list(plan.notes)
    assert len(plan.notes) == 2
    assert sum(len(flow.indices) for flow in plan.flows if flow.message.fields.get("what") == "best") == 1


def test_an_estimate_without_images_is_refused() -> None:
    workload = workloads.load("data_parallel")
    assert isinstance(workload, SupportsTrafficPlan)

    def find(name: str) -> Path:
        raise DataError(f"no {name}")

    with pytest.raises(DataError, match="no cifar10"):
        workload.plan(workload.config(dataset="cifar10"), Setting(("a",), Seed(7), find, {}))
    with pytest.raises(ConfigError, match="from its data"):
        workload.plan(workload.config(), Setting(("a",), Seed(7), find, {"examples": 3}))
