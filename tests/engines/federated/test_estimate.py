"""What an estimate tells of federated rounds is what a run then sends, with VHL and without."""

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
from farshore.engines.federated.baseline import messages
from farshore.engines.ping.workload import WORKLOAD as PING
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


def nowhere(name: str) -> Path:
    raise DataError(f"the data set '{name}' is not given")


def setting(nodes: tuple[str, ...] = NODES, **assumed: float) -> Setting:
    return Setting(nodes, Seed(SEED), nowhere, assumed)


def config(case: str) -> Any:
    return WORKLOAD.config.model_validate({**SMALL, **CASES[case]})


def counted(rows: Iterable[Mapping[str, Any]]) -> Counter[tuple[Any, ...]]:
    return Counter(tuple(row[n] for n in COLUMNS) for row in rows if row["kind"] not in CHANNEL_KINDS)


def run(workload: Any, settings: Any, folder: Path) -> list[Transfer]:
    return ended(workload, settings, folder)[0]


def ended(workload: Any, settings: Any, folder: Path) -> tuple[list[Transfer], Any]:
    rows: list[Transfer] = []
    result = InProcessRun(workload, settings, folder, NODES, seed=SEED, recorder=rows.append).run()
    return rows, result


@pytest.mark.parametrize("case", CASES)
def test_a_run_sends_frame_by_frame_what_was_estimated(tmp_path: Path, case: str) -> None:
    plan = WORKLOAD.plan(config(case), setting())
    rows, result = ended(WORKLOAD, config(case), tmp_path / "run")
    assert plan.baselines == result["baselines"]
    assert counted(planned_ledger(plan).to_pylist()) == counted(map(asdict, rows))
    assert not plan.notes


def test_the_baseline_is_what_fedavg_alone_sends(tmp_path: Path) -> None:
    rows, result = ended(WORKLOAD, config("fedavg"), tmp_path / "run")
    alone = {"uncompressed FedAvg": sum(row.dense_bytes for row in rows)}
    assert result["baselines"] == alone == {"uncompressed FedAvg": sum(row.payload_bytes for row in rows)}
    # Neither encodings nor virtual classes nor control variates move it.
    for case in CASES:
        assert WORKLOAD.plan(config(case), setting()).baselines == alone, case


def test_clients_of_whom_nothing_came_were_sent_a_state_and_no_more() -> None:
    waited = {"cohort": [3, 5, 8], "missing": {"5": "late"}}
    did_not = {"cohort": [3, 8], "missing": {"5": "lost"}}
    assert messages([waited]) == (3, 2)
    assert messages([did_not]) == (3, 2)
    assert messages([waited, did_not, {"cohort": [1], "missing": {}}]) == (7, 5)


def test_a_ping_sends_what_was_estimated(tmp_path: Path) -> None:
    settings = PING.config.model_validate({"rounds": 3, "kilobytes": 2})
    plan = PING.plan(settings, setting())
    assert counted(planned_ledger(plan).to_pylist()) == counted(map(asdict, run(PING, settings, tmp_path / "run")))


def test_an_estimates_report_sums_up_its_rounds() -> None:
    found = estimate(WORKLOAD.plan(config("fedavg"), setting()), "vhl", {}, SEED)
    told = found.as_dict()
    assert told["unit"] == "round"
    assert [window["label"] for window in told["windows"]] == ["0", "1", "2", "3"]
    assert told["communication"]["total"] == told["communication"]["once"]
    assert {link["link"] for link in told["links"]} >= {"LTE", "1 GbE"}
    assert all(link["seconds"] > 0 for link in told["links"])


def test_estimating_ships_nothing_and_makes_no_virtual_data(monkeypatch: pytest.MonkeyPatch) -> None:
    from farshore.algorithms.vhl import task

    def refuse(recipe: object) -> None:
        raise AssertionError("virtual data were made")

    monkeypatch.setattr(task.VirtualData, "from_recipe", refuse)
    plan = WORKLOAD.plan(config("scaffold, vhl shipped, topk"), setting())
    assert "virtual" in {flow.message.kind for flow in plan.flows}


def test_what_no_formula_tells_is_refused() -> None:
    settings = config("fedavg")
    with pytest.raises(ConfigError, match="who answers first"):
        WORKLOAD.plan(settings.model_copy(update={"schedule": "fedbuff"}), setting())
    with pytest.raises(ConfigError, match="2 clients a round are more than 1 nodes"):
        WORKLOAD.plan(settings, setting(NODES[:1]))
    with pytest.raises(ConfigError, match="assumes nothing"):
        WORKLOAD.plan(settings, setting(tokens=3))
