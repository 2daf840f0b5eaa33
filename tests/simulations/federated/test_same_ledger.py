"""The ledger of a simulated run equals that of a real one frame by frame, and follows formulas for bytes per round."""

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
from farshore.simulations.federated.simulated_traffic import MAX_LISTED_CLIENTS
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


def rows_of(rows: Iterable[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Return the programs' own frames without time and order; frames that channels add depend on the time."""
    names = ("node", "direction", "kind", "encoding", "round", "step", "dense_bytes", "payload_bytes", "frame_bytes")
    return sorted(
        tuple(row[n] for n in names) for row in rows if row["kind"] in ("control", "asset", "model", "update")
    )


def simulated(case: str, path: Path, workers: int = 1, clients: int = CLIENTS) -> list[dict[str, Any]]:
    Simulation(WORKLOAD, config(case), path, clients, SEED, workers=workers).run()
    rows: list[dict[str, Any]] = RunDirectory.open(path).read_ledger().to_pylist()
    return rows


def real(case: str, path: Path) -> list[dict[str, Any]]:
    rows: list[Transfer] = []
    InProcessRun(WORKLOAD, config(case), path, NODES, seed=SEED, recorder=rows.append).run()
    return [asdict(row) for row in rows]


@pytest.mark.parametrize("case", CASES)
def test_simulated_ledger_equals_the_real_one(tmp_path: Path, case: str) -> None:
    expected = rows_of(real(case, tmp_path / "real"))
    assert rows_of(simulated(case, tmp_path / "simulated")) == expected
    assert {row[2] for row in expected} >= {"control", "model", "update"}


def test_resumed_simulation_records_what_a_resumed_real_run_does(tmp_path: Path) -> None:
    """Both skip the virtual data for clients that hold them, and announce their checkpoints in the handshake."""
    case = "scaffold, vhl shipped"
    CASES[case + ", once more"] = {**CASES[case], "rounds": ROUNDS + 2}
    real(case, tmp_path / "real")
    expected = real(case + ", once more", tmp_path / "real")
    simulated(case, tmp_path / "first")
    rows_before = len(RunDirectory.open(tmp_path / "first").read_ledger())
    (tmp_path / "first" / "result.json").unlink()
    RunDirectory.open(tmp_path / "first").update(config=config(case + ", once more").model_dump(mode="json"))
    rows = simulated(case + ", once more", tmp_path / "first")[rows_before:]
    assert rows_of(rows) == rows_of(expected)
    assert {row["attempt"] for row in rows} == {1}


@pytest.mark.process
def test_workers_have_the_ledger_and_the_bits_of_one_process_with_shipped_virtual_data(tmp_path: Path) -> None:
    case = "scaffold, vhl shipped, topk"
    one, two = (simulated(case, tmp_path / str(n), n) for n in (1, 2))
    assert rows_of(two) == rows_of(one)
    states = [RunDirectory.open(tmp_path / str(n)).checkpoints.load(ROUNDS)[0] for n in (1, 2)]
    assert all((states[0][n] == states[1][n]).all() for n in states[0])


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_nodes_over_grpc_have_the_ledger_of_a_simulated_run(cloud: Any, tmp_path: Path) -> None:
    case = "fedavg, vhl shipped, int8"
    CASES[case] = {"virtual": SHIPPED, **INT8}
    cloud.join(*NODES)
    run_id = cloud.submit(config(case).model_dump(mode="json"), method="vhl", nodes=tuple(NODES))
    info = cloud.when(run_id, "finished", seconds=200)
    rows = RunDirectory.open(Path(info.directory)).read_ledger().to_pylist()
    assert rows_of(rows) == rows_of(simulated(case, tmp_path / "simulated"))


# ---- formulas for bytes per round --------------------------------------------------------------------------------


def dense(rows: Iterable[dict[str, Any]], *kinds: str) -> int:
    return sum(row["dense_bytes"] for row in rows if row["kind"] in kinds)


def layout_of(case: str) -> Any:
    return WORKLOAD.task(config(case), Seed(SEED), Path, CLIENTS).model().layout


def test_bytes_of_models_and_updates_follow_the_formulas(tmp_path: Path) -> None:
    """Dense bytes per round of kinds ``model`` and ``update``: 2 S P; FedNova adds 8 S, SCAFFOLD 8 S p.

    S: cohort size, P: payload bytes of the model, p: number of trainable parameters.
    """
    ledgers = {case: simulated(case, tmp_path / case) for case in ("fedavg", "fednova", "scaffold")}
    layout = layout_of("fedavg")
    assert layout.payload_bytes == 4 * layout.total + 8 * len(layout.integers)
    assert dense(ledgers["fedavg"], "model", "update") == ROUNDS * 2 * COHORT * layout.payload_bytes
    assert dense(ledgers["fednova"], "model", "update") == ROUNDS * (2 * COHORT * layout.payload_bytes + 8 * COHORT)
    grouped = layout_of("scaffold")
    expected = ROUNDS * 2 * COHORT * (grouped.payload_bytes + 4 * grouped.trainable)
    assert dense(ledgers["scaffold"], "model", "update") == expected
    for rows in ledgers.values():
        assert dense(rows, "control", "asset") == 0


def test_virtual_data_enlarge_the_head_and_are_sent_once_per_client(tmp_path: Path) -> None:
    """VHL adds 2 S · 4 C_v (d + 1) bytes per round, and once C_v m ch H W for each client that takes part.

    C_v: number of virtual classes, d: width of the features, m: virtual images per class, ch H W: size of an image.
    """
    plain = simulated("fedavg", tmp_path / "plain")
    seeded = simulated("fedavg, vhl", tmp_path / "seeded")
    head = 4 * 10 * (64 + 1)
    assert dense(seeded, "model", "update") - dense(plain, "model", "update") == ROUNDS * 2 * COHORT * head
    assert dense(seeded, "asset") == 0
    offer_sizes = [
        r["frame_bytes"] for r in seeded if r["kind"] == "control" and r["direction"] == "down" and r["round"]
    ]
    assert 100 < max(offer_sizes) < 300  # name, size and digest
    shipped = simulated("scaffold, vhl shipped", tmp_path / "shipped")
    participants = {row["node"] for row in shipped if row["kind"] == "update"}
    assert len(participants) > COHORT
    sent = [row for row in shipped if row["kind"] == "asset"]
    assert sorted(row["node"] for row in sent) == sorted(participants)
    assert {row["dense_bytes"] for row in sent} == {row["payload_bytes"] for row in sent} == {10 * 4 * 8 * 8}


def test_round_of_a_large_population_records_rows_of_its_cohort_only(tmp_path: Path) -> None:
    CASES["many"] = {"virtual": OFF, "partition": {"kind": "iid", "min_size": 1}}
    rows = simulated("many", tmp_path, clients=MAX_LISTED_CLIENTS + 1)
    assert len(rows) == ROUNDS * 2 * COHORT
