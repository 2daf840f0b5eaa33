"""Unmodified Flower apps give the same results as on Flower's own engine."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from farshore.core.errors import ConfigError, RunFailedError
from farshore.runs.directory import RunDirectory
from farshore.simulations.flower_app import flower_run, simulate_app

pytest.importorskip("flwr")
APPS = Path(__file__).parent / "apps"
STRATEGIES = ("fedavg", "fedprox", "fedadam", "krum", "dp")
#: With 4 nodes, Krum's two best updates tie (each is the other's neighbor), and the order would decide.
NODES = 6
#: Bytes of the model, a 64 x 10 matrix and 10 biases in float32.
MODEL = 4 * (64 * 10 + 10)


@pytest.fixture(scope="module")
def engine() -> Any:
    """The module ``flower_engine``, which runs apps on Flower's engine."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        return importlib.import_module("flower_engine")
    finally:
        sys.path.pop(0)


@pytest.fixture(scope="module")
def both(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Run directories of the same app on Flower's engine and on farshore."""
    folder = tmp_path_factory.mktemp("message")
    changes = {"strategies": ",".join(STRATEGIES), "nodes": NODES}
    engine.run_on_flower(APPS / "message", changes, NODES, folder / "theirs")
    simulate_app(flower_run(APPS / "message", changes), folder / "ours", NODES)
    return folder / "theirs", folder / "ours"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_strategy_gives_the_same_arrays_as_on_flowers_engine(
    engine: Any, both: tuple[Path, Path], strategy: str
) -> None:
    theirs, ours = (engine.arrays(folder, strategy) for folder in both)
    assert theirs.keys() == ours.keys() == {"weight", "bias"}
    for name in theirs:
        assert np.abs(theirs[name]).max() > 0.01
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6)


def test_strategies_give_different_arrays(engine: Any, both: tuple[Path, Path]) -> None:
    found = [engine.arrays(both[1], strategy)["weight"] for strategy in STRATEGIES]
    for i, one in enumerate(found):
        assert all(np.abs(one - other).max() > 1e-3 for other in found[:i])


def test_client_metrics_and_states_are_the_same_as_on_flowers_engine(both: tuple[Path, Path]) -> None:
    theirs, ours = (json.loads((folder / "metrics.json").read_text()) for folder in both)
    flat = lambda metrics: [v for s in STRATEGIES for r in metrics[s] for m in r.values() for v in m.values()]  # noqa: E731
    np.testing.assert_allclose(flat(ours), flat(theirs), atol=1e-6)
    # Counted in the clients' context.state: two visits per strategy.
    assert ours["dp"][0]["2"]["visits"] == pytest.approx(2 * len(STRATEGIES))


def test_app_of_the_legacy_api_gives_the_same_arrays_as_on_flowers_engine(engine: Any, tmp_path: Path) -> None:
    engine.run_on_flower(APPS / "legacy", {}, 4, tmp_path / "theirs")
    simulate_app(flower_run(APPS / "legacy", {}), tmp_path / "ours", 4)
    theirs, ours = (engine.arrays(tmp_path / side, "legacy") for side in ("theirs", "ours"))
    assert np.abs(theirs["weight"]).max() > 0.1
    for name in theirs:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=0, atol=1e-6)


def test_ledger_has_the_exact_bytes_of_the_model(tmp_path: Path) -> None:
    changes = {"num-server-rounds": 1, "nodes": 2}
    simulate_app(flower_run(APPS / "message", changes), tmp_path / "run", 2)
    run = RunDirectory.open(tmp_path / "run")
    rows = [r for r in run.read_ledger().to_pylist() if r["kind"] in ("train", "evaluate")]
    sizes = sorted((r["kind"], r["direction"], r["dense_bytes"], r["payload_bytes"], r["round"]) for r in rows)
    assert sizes == sorted(
        2 * [("evaluate", "down", MODEL, MODEL, 1), ("evaluate", "up", 0, 0, 1)]
        + 2 * [("train", "down", MODEL, MODEL, 1), ("train", "up", MODEL, MODEL, 1)]
    )
    (metrics,) = run.read_metrics()
    assert metrics["replies"] == 4
    assert metrics["failures"] == 0
    assert 1.5 < metrics["train_loss"] < 2.4


def test_fp16_encoding_halves_the_payload_and_changes_the_result_little(engine: Any, tmp_path: Path) -> None:
    changes = {"num-server-rounds": 1, "nodes": 2}
    more: dict[str, Any]
    for name, more in (("raw", {}), ("half", {"up_encoding": "fp16"})):
        simulate_app(flower_run(APPS / "message", changes, **more), tmp_path / name, 2)
    rows = RunDirectory.open(tmp_path / "half").read_ledger().to_pylist()
    up = [(r["dense_bytes"], r["payload_bytes"]) for r in rows if (r["kind"], r["direction"]) == ("train", "up")]
    assert up == 2 * [(MODEL, MODEL // 2)]
    raw, half = (engine.arrays(tmp_path / name, "fedavg")["weight"] for name in ("raw", "half"))
    assert 0 < np.abs(raw - half).max() < 1e-3


def test_exception_in_a_client_is_a_failure_and_the_round_completes(engine: Any, tmp_path: Path) -> None:
    changes = {"fault": "raise", "nodes": 3, "num-server-rounds": 1}
    result = simulate_app(flower_run(APPS / "message", changes), tmp_path / "run", 3)
    assert (result["messages"], result["failures"]) == (6, 1)
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "Received 2 results and 1 failures" in log
    assert "client-1, train: ValueError: this client cannot train (digits_app/client_app.py, line " in log
    assert np.abs(engine.arrays(tmp_path / "run", "fedavg")["weight"]).max() > 0.01


def test_exception_in_the_serverapp_ends_the_run_with_that_exception(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no such strategy"):
        simulate_app(flower_run(APPS / "message", {"strategies": "none"}), tmp_path / "run", 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lrr": 1.0}, "did you mean 'lr'"),
        ({"lr": "fast"}, "'lr' must be float"),
        ({"nodes": 2.5}, "'nodes' must be int"),
    ],
)
def test_invalid_overrides_of_the_configuration_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        flower_run(APPS / "message", changes)


def test_folder_without_an_app_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no pyproject\.toml"):
        flower_run(tmp_path, {})
    (tmp_path / "pyproject.toml").write_text("[tool.flwr.app.components]\nserverapp = 'a:b'\n")
    with pytest.raises(ConfigError, match="names no clientapp"):
        flower_run(tmp_path, {})


def test_loading_the_workload_does_not_import_flower() -> None:
    import subprocess

    script = "from farshore.core.workloads import load; load('flower'); import sys; sys.exit('flwr' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", script], timeout=60, check=False).returncode == 0


def test_run_fails_at_once_when_no_nodes_remain(tmp_path: Path) -> None:
    from farshore.core.errors import RefusedError
    from farshore.engines.flower.workload import FlowerWorkload
    from farshore.simulations.in_process import InProcessRun

    class Refusing(FlowerWorkload):
        def node_program(self, session: Any, config: Any) -> None:
            raise RefusedError("not here")

    config = flower_run(APPS / "message", {})
    with pytest.raises((RunFailedError, RefusedError), match="not here"):
        InProcessRun(Refusing(), config, tmp_path / "run", ("a", "b")).run()


def _host(folder: Path, epoch: int) -> tuple[Any, Any]:
    """A new node program, and the server's end of its channel."""
    from farshore.core.seeds import Seed
    from farshore.core.session import RunInfo
    from farshore.engines.flower.node import Host
    from farshore.wire.memory import pair

    server, mine = pair("a")
    run = RunInfo("r", "flower", Seed(0), epoch, ("a",), folder)
    session: Any = SimpleNamespace(
        run=run, node="a", shard=(0, 1), channel=mine, admit=lambda *_: None, log=lambda line: None
    )
    return Host(session, flower_run(APPS / "message", {})), server


def _visits(folder: Path, epoch: int) -> int:
    """Let a new node program answer one message; returns the number of visits counted in the client's state."""
    from farshore.engines.flower import compat as fl
    from farshore.engines.flower.arrays import from_frame, to_frame
    from farshore.engines.flower.flower_ids import node_id
    from farshore.engines.flower.protocol import Done, Goodbye

    host, server = _host(folder, epoch)
    arrays = {"weight": np.zeros((64, 10), np.float32), "bias": np.zeros(10, np.float32)}
    fl.set_server_identity(7)
    content = fl.RecordDict(
        {
            "arrays": fl.ArrayRecord({name: fl.Array(values) for name, values in arrays.items()}),
            "config": fl.ConfigRecord({"server-round": 1}),
        }
    )
    server.send(to_frame(fl.set_metadata(fl.Message(content, node_id("a", 0), "train")), 1))
    server.send(Done().message())
    host.run()
    reply = from_frame(server.receive(5), "node a")
    assert Goodbye.read(server.receive(5), "node a") == Goodbye()
    return int(reply.content["metrics"]["visits"])


def test_client_state_survives_a_restart_of_its_program_but_not_of_the_server(tmp_path: Path) -> None:
    assert [_visits(tmp_path, 0), _visits(tmp_path, 0), _visits(tmp_path, 1)] == [1, 2, 1]


@pytest.mark.parametrize(
    ("kind", "fields", "complaint"),
    [
        ("control", {"what": "goodbye"}, "expected 'done', got a 'control' message 'goodbye'"),
        ("control", {"what": "done", "why": "x"}, "invalid 'done' message: unknown field 'why'"),
        ("train", {"message": 3}, "invalid 'train' message: expected bytes, got int"),
        ("train", {}, "contains no message of a Flower app"),
    ],
)
def test_a_node_program_ends_with_an_error_at_an_invalid_message_of_the_server(
    kind: str, fields: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    from farshore.core.errors import WireError
    from farshore.core.message import Message

    host, server = _host(tmp_path, 0)
    server.send(Message(kind, fields=fields))
    with pytest.raises(WireError, match=f"the server: .*{complaint}"):
        host.run()
