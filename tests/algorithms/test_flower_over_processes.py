"""Flower apps on a real server and real nodes: accepted by hash, told by the log, and going on without who is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.runs.directory import RunDirectory
from farshore.simulations.flower_app import flower_run, simulate_app

pytest.importorskip("flwr")
pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]
APPS = Path(__file__).parent / "flower_apps"


def _weight(directory: Path) -> Any:
    with np.load(directory / "fedavg.npz") as found:
        return found["weight"]


def test_real_nodes_end_where_simulated_ones_do_byte_for_byte(cloud: Any, tmp_path: Path) -> None:
    config = flower_run(APPS / "message", {"nodes": 2})
    cloud.join("client-0", "client-1", accept_apps=frozenset({config.digest}))
    info = cloud.when(cloud.submit(config.model_dump(), method="flower", count=2), "finished")
    simulate_app(config, tmp_path / "run", 2)
    real, simulated = (RunDirectory.open(p) for p in (Path(info.directory), tmp_path / "run"))
    np.testing.assert_allclose(_weight(real.path), _weight(simulated.path), rtol=0, atol=1e-6)
    assert json.loads(info.result_json) == simulated.result == {"messages": 8, "failures": 0}
    names = ("node", "kind", "direction", "round", "dense_bytes", "payload_bytes")

    def sizes(run: RunDirectory) -> list[tuple[Any, ...]]:
        rows = run.read_ledger().to_pylist()
        return sorted(tuple(r[n] for n in names) for r in rows if r["kind"] in ("train", "evaluate"))

    assert sizes(real) == sizes(simulated)
    assert len(sizes(real)) == 16


def test_a_node_that_does_not_accept_the_app_says_its_hash_and_the_flag_and_executes_nothing(cloud: Any) -> None:
    config = flower_run(APPS / "message", {"nodes": 2})
    cloud.join("client-0", accept_apps=frozenset({"0" * 64}))
    info = cloud.when(cloud.submit(config.model_dump(), method="flower", count=1), "failed")
    assert f"node client-0 does not accept a Flower app with the hash {config.digest}" in info.reason
    assert f"--accept-apps {config.digest}" in info.reason
    assert not list((cloud.folder / "nodes").rglob("client_app.py"))


@pytest.mark.slow
def test_a_client_killed_in_mid_round_costs_its_reply_and_nothing_else(cloud: Any) -> None:
    config = flower_run(APPS / "message", {"nodes": 2, "fault": "die", "num-server-rounds": 3})
    cloud.join("client-0", "client-1", "client-2", accept_apps=frozenset({config.digest}))
    info = cloud.when(cloud.submit(config.model_dump(), method="flower", count=3), "finished")
    log = cloud.log(info)
    assert json.loads(info.result_json)["failures"] == 1
    assert "aggregate_train: Received 2 results and 1 failures" in log
    assert "configure_train: Sampled 2 nodes (out of 2)" in log
    # Long before its timeout of a minute; a killed process is noticed when it ends.
    assert info.ended - info.started < 30
