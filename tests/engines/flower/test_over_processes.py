"""Flower apps on a real server and real nodes: acceptance by hash, logs, and lost nodes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.client.admin import AdminClient
from farshore.core.errors import RefusedError
from farshore.engines.flower.config import FlowerRun
from farshore.runs.directory import RunDirectory
from farshore.simulations.flower_app import flower_run, simulate_app

pytest.importorskip("flwr")
pytestmark = [pytest.mark.process, pytest.mark.timeout(110)]
APPS = Path(__file__).parent / "apps"


def _weight(directory: Path) -> Any:
    with np.load(directory / "fedavg.npz") as found:
        return found["weight"]


def test_real_and_simulated_nodes_give_the_same_result_and_bytes(cloud: Any, tmp_path: Path) -> None:
    config = flower_run(APPS / "message", {"nodes": 2})
    cloud.join("attic", "kitchen", accept_apps=frozenset({config.digest}))
    info = cloud.when(cloud.submit(config.model_dump(), method="flower", count=2), "finished")
    simulate_app(config, tmp_path / "run", 2)
    real, simulated = (RunDirectory.open(p) for p in (Path(info.directory), tmp_path / "run"))
    # The same bits, though real nodes have other names than simulated ones: sums are in the order of the cohort.
    np.testing.assert_array_equal(_weight(real.path), _weight(simulated.path))
    assert simulated.result is not None
    assert json.loads(info.result_json) == simulated.result
    assert (simulated.result["messages"], simulated.result["failures"]) == (8, 0)
    names = ("kind", "direction", "round", "dense_bytes", "payload_bytes")

    def sizes(run: RunDirectory) -> list[tuple[Any, ...]]:
        rows = run.read_ledger().to_pylist()
        return sorted(tuple(r[n] for n in names) for r in rows if r["kind"] in ("train", "evaluate"))

    assert sizes(real) == sizes(simulated)
    assert len(sizes(real)) == 16


def test_a_node_that_does_not_accept_the_app_names_its_hash_and_the_option_and_executes_nothing(cloud: Any) -> None:
    config = flower_run(APPS / "message", {"nodes": 2})
    cloud.join("client-0", accept_apps=frozenset({"0" * 64}))
    info = cloud.when(cloud.submit(config.model_dump(), method="flower", count=1), "failed")
    assert f"node client-0 does not accept a Flower app with the hash {config.digest}" in info.reason
    assert f"--accept-apps {config.digest}" in info.reason
    assert not list((cloud.folder / "nodes").rglob("client_app.py"))


def _marking_app(folder: Path, marker: Path) -> Path:
    """A copy of the app that creates the file ``marker`` when its ServerApp is imported."""
    app = shutil.copytree(APPS / "message", folder)
    module = app / "digits_app" / "server_app.py"
    module.write_text(f"{module.read_text()}\nPath({str(marker)!r}).touch()\n")
    return app


def _submit(admin: AdminClient, config: FlowerRun) -> Any:
    return admin.submit("flower", config.model_dump(), node_count=1, seed=7)


def test_a_server_executes_submitted_apps_only_if_their_hash_is_accepted(
    start: Callable[..., Any], tmp_path: Path
) -> None:
    marker = tmp_path / "imported"
    app = _marking_app(tmp_path / "app", marker)
    config = flower_run(app, {"nodes": 1, "num-server-rounds": 1})
    strict, cloud = start(), start(accept_apps=frozenset({config.digest}))
    with strict.submitter() as admin, pytest.raises(RefusedError) as refused:
        _submit(admin, config)
    assert f"the server does not accept a Flower app with the hash {config.digest}" in refused.value.message
    assert f"farshore server up … --accept-apps {config.digest}" in refused.value.hint
    with strict.admin() as admin:
        assert admin.runs() == []
    cloud.join("client-0", accept_apps=frozenset({config.digest}))
    with cloud.submitter() as admin:
        assert not marker.exists()
        info = cloud.when(_submit(admin, config).id, "finished")
        assert marker.exists()
        marker.unlink()
        with (app / "digits_app" / "client_app.py").open("a") as file:
            file.write("# changed\n")
        changed = flower_run(app, dict(config.run_config))
        with pytest.raises(RefusedError, match=changed.digest):
            _submit(admin, changed)
        # Other files with an accepted hash are refused in the run's process.
        forged = cloud.when(_submit(admin, config.model_copy(update={"archive": changed.archive})).id, "failed")
    assert json.loads(info.result_json)["failures"] == 0
    assert f"have the hash {changed.digest}, not {config.digest}" in forged.reason
    assert not marker.exists()


def test_submitters_cannot_resume_an_operators_run_after_a_server_restart(cloud: Any, tmp_path: Path) -> None:
    marker = tmp_path / "imported"
    config = flower_run(_marking_app(tmp_path / "app", marker), {"nodes": 1, "num-server-rounds": 1})
    with cloud.admin() as operator:
        run = _submit(operator, config).id
        assert operator.cancel(run).state == "cancelled"
    with cloud.submitter() as admin:
        assert admin.resume(run).state == "waiting"
        admin.cancel(run)
    cloud.server.kill()
    cloud.server.join()
    cloud.up()
    with cloud.submitter() as admin, pytest.raises(RefusedError, match="--accept-apps"):
        admin.resume(run)
    assert cloud.run(run).state == "cancelled"
    cloud.join("client-0", accept_apps=frozenset({config.digest}))
    with cloud.admin() as operator:
        operator.resume(run)
    cloud.when(run, "finished")
    assert marker.exists()


@pytest.mark.slow
def test_a_client_killed_during_a_round_costs_only_its_reply(cloud: Any) -> None:
    config = flower_run(APPS / "message", {"nodes": 2, "fault": "die", "num-server-rounds": 3})
    cloud.join("client-0", "client-1", "client-2", accept_apps=frozenset({config.digest}))
    info = cloud.when(cloud.submit(config.model_dump(), method="flower", count=3), "finished")
    log = cloud.log(info)
    assert json.loads(info.result_json)["failures"] == 1
    assert "aggregate_train: Received 2 results and 1 failures" in log
    assert "configure_train: Sampled 2 nodes (out of 2)" in log
    # Long before the timeout of a minute: the end of a process is noticed at once.
    assert info.ended - info.started < 30
