"""The ledger of a simulated run is that of a real one, frame by frame, and is what the specification's formulas say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.runs.directory import RunDirectory
from farshore.simulations.federated.simulated_traffic import NAMED
from farshore.simulations.federated.simulation import Simulation
from farshore.simulations.in_process import InProcessRun

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("one_thread")]

CLIENTS, COHORT, ROUNDS, SEED = 5, 2, 3, 7
NODES = [f"client-{i}" for i in range(CLIENTS)]
SMALL: dict[str, Any] = {"rounds": ROUNDS, "per_round": COHORT, "local_epochs": 1, "batch": 256, "eval_every": ROUNDS}
SMALL |= {"checkpoint_every": 2, "partition": {"kind": "iid"}}
OFF, SEEDED = {"enabled": False}, {"per_class": 4, "batch": 16}
SHIPPED = {**SEEDED, "distribution": "ship"}
TOPK = {"uplink": {"encoding": "topk"}, "downlink": {"encoding": "bf16"}}
INT8 = {"uplink": {"encoding": "int8"}, "downlink": {"encoding": "int8"}}
LOWRANK = {"uplink": {"encoding": "lowrank", "rank": 2, "values": "fp16"}}
CASES: dict[str, dict[str, Any]] = {
    "fedavg": {"virtual": OFF},
    "scaffold": {"method": "scaffold", "virtual": OFF, "norm": "group"},
    "fednova": {"method": "fednova", "virtual": OFF},
    "fedavg, vhl": {"virtual": SEEDED},
    "scaffold, vhl shipped": {"method": "scaffold", "virtual": SHIPPED},
    "fedavg, topk": {"virtual": OFF, **TOPK},
    "scaffold, vhl shipped, topk": {"method": "scaffold", "virtual": SHIPPED, **TOPK},
    "fedprox, vhl, int8": {"method": "fedprox", "virtual": SEEDED, **INT8},
    "fednova, vhl shipped, lowrank": {"method": "fednova", "virtual": SHIPPED, **LOWRANK},
}


def config(case: str) -> Any:
    return WORKLOAD.config.model_validate({**SMALL, **CASES[case]})


def rows_of(found: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """All that the programs exchanged, without time and order; what a channel adds comes as time goes by."""
    names = ("node", "direction", "kind", "encoding", "round", "step", "dense_bytes", "payload_bytes", "frame_bytes")
    return sorted(
        tuple(row[n] for n in names) for row in found if row["kind"] in ("control", "virtual", "model", "update")
    )


def simulated(case: str, path: Path, workers: int = 1, clients: int = CLIENTS) -> list[dict[str, Any]]:
    Simulation(WORKLOAD, config(case), path, clients, SEED, workers=workers).run()
    found: list[dict[str, Any]] = RunDirectory.open(path).read_ledger().to_pylist()
    return found


def real(case: str, path: Path) -> list[dict[str, Any]]:
    rows: list[Transfer] = []
    InProcessRun(WORKLOAD, config(case), path, NODES, seed=SEED, recorder=rows.append).run()
    return [asdict(row) for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_a_simulated_runs_ledger_is_the_real_ones(tmp_path: Path, case: str) -> None:
    expected = rows_of(real(case, tmp_path / "real"))
    assert rows_of(simulated(case, tmp_path / "simulated")) == expected
    assert {row[2] for row in expected} >= {"control", "model", "update"}


def test_a_simulation_that_goes_on_writes_what_a_real_run_would(tmp_path: Path) -> None:
    """Both know by then who holds the virtual data, and say which checkpoints they have."""
    case = "scaffold, vhl shipped"
    CASES[case + ", once more"] = {**CASES[case], "rounds": ROUNDS + 2}
    real(case, tmp_path / "real")
    expected = real(case + ", once more", tmp_path / "real")
    simulated(case, tmp_path / "first")
    before = len(RunDirectory.open(tmp_path / "first").read_ledger())
    (tmp_path / "first" / "result.json").unlink()
    RunDirectory.open(tmp_path / "first").update(config=config(case + ", once more").model_dump(mode="json"))
    found = simulated(case + ", once more", tmp_path / "first")[before:]
    assert rows_of(found) == rows_of(expected)
    assert {row["attempt"] for row in found} == {1}


@pytest.mark.process
def test_workers_write_the_ledger_of_one_player_and_train_on_the_data_that_were_shipped(tmp_path: Path) -> None:
    case = "scaffold, vhl shipped, topk"
    alone, together = (simulated(case, tmp_path / str(n), n) for n in (1, 2))
    assert rows_of(together) == rows_of(alone)
    states = [RunDirectory.open(tmp_path / str(n)).checkpoints.load(ROUNDS)[0] for n in (1, 2)]
    assert all((states[0][n] == states[1][n]).all() for n in states[0])


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nodes_over_grpc_write_the_ledger_of_a_simulated_run(cloud: Any, tmp_path: Path) -> None:
    case = "fedavg, vhl shipped, int8"
    CASES[case] = {"virtual": SHIPPED, **INT8}
    cloud.join(*NODES)
    run_id = cloud.submit(config(case).model_dump(mode="json"), method="vhl", nodes=tuple(NODES))
    info = cloud.when(run_id, "finished", seconds=200)
    found = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    assert rows_of(found) == rows_of(simulated(case, tmp_path / "simulated"))


# ---- formulas of the specification, section 8.1 ------------------------------------------------------------------


def dense(rows: Iterable[dict[str, Any]], *kinds: str) -> int:
    return sum(row["dense_bytes"] for row in rows if row["kind"] in kinds)


def layout_of(case: str) -> Any:
    return WORKLOAD.task(config(case), Seed(SEED), Path, CLIENTS).model().layout


def test_rounds_cost_what_the_formulas_say(tmp_path: Path) -> None:
    """2 S P; FedNova 8 S more; SCAFFOLD 8 S p more: the kinds ``model`` and ``update``, dense, over all rounds."""
    found = {case: simulated(case, tmp_path / case) for case in ("fedavg", "fednova", "scaffold")}
    layout = layout_of("fedavg")
    assert layout.payload_bytes == 4 * layout.total + 8 * len(layout.integers)
    assert dense(found["fedavg"], "model", "update") == ROUNDS * 2 * COHORT * layout.payload_bytes
    assert dense(found["fednova"], "model", "update") == ROUNDS * (2 * COHORT * layout.payload_bytes + 8 * COHORT)
    grouped = layout_of("scaffold")
    expected = ROUNDS * 2 * COHORT * (grouped.payload_bytes + 4 * grouped.trainable)
    assert dense(found["scaffold"], "model", "update") == expected
    for rows in found.values():
        assert dense(rows, "control", "virtual") == 0


def test_virtual_data_widen_the_head_and_cross_once_a_client(tmp_path: Path) -> None:
    """VHL adds 2 S · 4 C_v (d + 1) a round, and |V| = C_v m (ch H W + 1) for each client that takes part."""
    plain = simulated("fedavg", tmp_path / "plain")
    seeded = simulated("fedavg, vhl", tmp_path / "seeded")
    head = 4 * 10 * (64 + 1)
    assert dense(seeded, "model", "update") - dense(plain, "model", "update") == ROUNDS * 2 * COHORT * head
    assert dense(seeded, "virtual") == 0
    offers = [r["frame_bytes"] for r in seeded if r["kind"] == "control" and r["direction"] == "down" and r["round"]]
    assert 150 < max(offers) < 500  # recipe, seed and digest
    shipped = simulated("scaffold, vhl shipped", tmp_path / "shipped")
    took_part = {row["node"] for row in shipped if row["kind"] == "update"}
    assert len(took_part) > COHORT
    sent = [row for row in shipped if row["kind"] == "virtual"]
    assert sorted(row["node"] for row in sent) == sorted(took_part)
    assert {row["dense_bytes"] for row in sent} == {row["payload_bytes"] for row in sent} == {10 * 4 * (8 * 8 + 1)}


def test_a_round_of_a_large_population_costs_rows_of_its_cohort_alone(tmp_path: Path) -> None:
    CASES["many"] = {"virtual": OFF, "partition": {"kind": "iid", "min_size": 1}}
    rows = simulated("many", tmp_path, clients=NAMED + 1)
    assert len(rows) == ROUNDS * 2 * COHORT
