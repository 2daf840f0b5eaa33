"""The traffic estimate of federated rounds equals what a run sends, with and without VHL."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import ConfigError, DataError
from farshore.core.seeds import Seed
from farshore.core.traffic_plan import Setting
from farshore.core.transfer import Transfer
from farshore.engines.federated.baseline import count_messages
from farshore.reports.estimate import estimate, planned_ledger
from farshore.runs.traffic import CHANNEL_KINDS
from farshore.simulations.in_process import InProcessRun

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("one_thread")]

CLIENTS, COHORT, ROUNDS, SEED = 5, 2, 3, 7
NODES = tuple(f"client-{i}" for i in range(CLIENTS))
SMALL: dict[str, Any] = {"rounds": ROUNDS, "per_round": COHORT, "local_epochs": 1, "batch": 256, "eval_every": ROUNDS}
SMALL |= {"checkpoint_every": 2, "partition": {"kind": "lda", "alpha": 0.5, "min_size": 10}}
OFF, SEEDED = {"enabled": False}, {"per_class": 4, "batch": 16}
SHIPPED = {**SEEDED, "distribution": "ship"}
INT8 = {"uplink": {"encoding": "int8"}, "downlink": {"encoding": "int8"}}
TOPK = {"uplink": {"encoding": "topk"}, "downlink": {"encoding": "bf16"}}
LOWRANK = {"uplink": {"encoding": "lowrank", "rank": 2, "values": "fp16"}}
CASES: dict[str, dict[str, Any]] = {
    "fedavg": {"virtual": OFF},
    "fedavg, int8": {"virtual": OFF, **INT8},
    "fedavg, vhl": {"virtual": SEEDED},
    "fedprox, vhl, int8": {"method": "fedprox", "virtual": SEEDED, **INT8},
    "scaffold, vhl shipped, topk": {"method": "scaffold", "virtual": SHIPPED, **TOPK},
    "fednova, vhl shipped, lowrank": {"method": "fednova", "virtual": SHIPPED, **LOWRANK},
}
COLUMNS = ("node", "direction", "kind", "encoding", "round", "dense_bytes", "payload_bytes", "frame_bytes")


def no_data(name: str) -> Path:
    raise DataError(f"the data set '{name}' is not available")


def setting(nodes: tuple[str, ...] = NODES, **assumed: float) -> Setting:
    return Setting(nodes, Seed(SEED), no_data, assumed)


def config(case: str) -> Any:
    return WORKLOAD.config.model_validate({**SMALL, **CASES[case]})


def frames(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row[n] for n in COLUMNS) for row in rows if row["kind"] not in CHANNEL_KINDS)


def run(workload: Any, settings: Any, folder: Path) -> list[Transfer]:
    return run_with_result(workload, settings, folder)[0]


def run_with_result(workload: Any, settings: Any, folder: Path) -> tuple[list[Transfer], Any]:
    rows: list[Transfer] = []
    result = InProcessRun(workload, settings, folder, NODES, seed=SEED, recorder=rows.append).run()
    return rows, result


@pytest.mark.parametrize("case", CASES)
def test_a_run_sends_exactly_the_estimated_frames(tmp_path: Path, case: str) -> None:
    plan = WORKLOAD.plan(config(case), setting())
    rows, result = run_with_result(WORKLOAD, config(case), tmp_path / "run")
    assert plan.baselines == result["baselines"]
    assert frames(planned_ledger(plan).to_pylist()) == frames(map(asdict, rows))
    assert not plan.notes


def test_the_baseline_is_the_traffic_of_plain_fedavg(tmp_path: Path) -> None:
    rows, result = run_with_result(WORKLOAD, config("fedavg"), tmp_path / "run")
    expected = {"uncompressed FedAvg": sum(row.dense_bytes for row in rows)}
    assert result["baselines"] == expected == {"uncompressed FedAvg": sum(row.payload_bytes for row in rows)}
    # Neither encodings nor virtual classes nor control variates change it.
    for case in CASES:
        assert WORKLOAD.plan(config(case), setting()).baselines == expected, case


def test_clients_without_a_reply_count_as_a_state_sent_but_no_update() -> None:
    synchronous = {"cohort": [3, 5, 8], "missing": {"5": "late"}}
    asynchronous = {"cohort": [3, 8], "missing": {"5": "lost"}}
    assert count_messages([synchronous]) == (3, 2)
    assert count_messages([asynchronous]) == (3, 2)
    assert count_messages([synchronous, asynchronous, {"cohort": [1], "missing": {}}]) == (7, 5)


def test_the_report_of_an_estimate_sums_up_its_rounds() -> None:
    found = estimate(WORKLOAD.plan(config("fedavg"), setting()), "vhl", {}, SEED)
    report = found.as_dict()
    assert report["unit"] == "round"
    assert [window["label"] for window in report["windows"]] == ["0", "1", "2", "3"]
    assert report["communication"]["total"] == report["communication"]["once"]
    assert {link["link"] for link in report["links"]} >= {"LTE", "1 GbE"}
    assert all(link["seconds"] > 0 for link in report["links"])


def test_an_estimate_sends_nothing_and_generates_no_virtual_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from farshore.algorithms.vhl import task

    def refuse(recipe: object) -> None:
        raise AssertionError("virtual data were generated")

    monkeypatch.setattr(task.VirtualData, "from_recipe", refuse)
    plan = WORKLOAD.plan(config("scaffold, vhl shipped, topk"), setting())
    assert "asset" in {flow.message.kind for flow in plan.flows}


def test_runs_that_cannot_be_estimated_are_refused() -> None:
    settings = config("fedavg")
    with pytest.raises(ConfigError, match="order of replies"):
        WORKLOAD.plan(settings.model_copy(update={"schedule": "fedbuff"}), setting())
    with pytest.raises(ConfigError, match="per_round is 2, but there are only 1 nodes"):
        WORKLOAD.plan(settings, setting(NODES[:1]))
    with pytest.raises(ConfigError, match="takes no assumptions"):
        WORKLOAD.plan(settings, setting(tokens=3))
