"""Figures of rounds are correct and the same on all backends: divergence, bytes, seconds, terms of the loss."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.seeds import Seed
from farshore.core.transfer import Transfer
from farshore.engines.federated.client_pool import cohort
from farshore.engines.federated.methods import FLOATS, NORMALIZER
from farshore.runs.directory import RunDirectory
from farshore.runs.history import read_history
from farshore.runs.model_states import load_state
from farshore.simulations.federated.simulation import Simulation
from farshore.simulations.in_process import InProcessRun

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("one_thread")]

CLIENTS, COHORT, ROUNDS, SEED = 5, 3, 3, 7
NODES = [f"client-{i}" for i in range(CLIENTS)]
SMALL: dict[str, Any] = {"rounds": ROUNDS, "per_round": COHORT, "local_epochs": 1, "batch": 128, "lr": 0.1}
SMALL |= {"checkpoint_every": 2, "partition": {"kind": "lda", "alpha": 0.3, "min_size": 20}}
OFF, ON = {"enabled": False}, {"per_class": 4, "batch": 16}


def config(**settings: Any) -> Any:
    return WORKLOAD.config.model_validate({**SMALL, **settings})


def simulated(path: Path, settings: Any, workers: int = 1) -> RunDirectory:
    Simulation(WORKLOAD, settings, path, CLIENTS, SEED, workers=workers).run()
    return RunDirectory.open(path)


def history_of(folder: Path, rounds: int = ROUNDS) -> list[dict[str, Any]]:
    return read_history(folder, rounds)


def expected_divergence(settings: Any) -> list[float]:
    """Compute each round's divergence from the clients' updates."""
    task = WORKLOAD.task(settings, Seed(SEED), Path, CLIENTS)
    flat = task.model()
    method, p = task.method(flat), flat.layout.trainable
    state, collected = method.start(flat), []
    client_states: list[dict[str, torch.Tensor]] = [{} for _ in range(CLIENTS)]
    for round_index in range(1, ROUNDS + 1):
        updates = []
        for client in cohort(Seed(SEED), round_index, CLIENTS, COHORT):
            work = task.work(flat, client, round_index)
            work.client_state = client_states[client]
            updates.append(method.local(flat, state, work))
        ends = np.array([u.tensors[FLOATS][:p] for u in updates], np.float64)
        weights = np.array([1.0 if settings.method == "scaffold" else u.samples for u in updates], np.float64)
        weights /= weights.sum()
        if settings.method == "fednova":
            normalizers = np.array([u.tensors[NORMALIZER][0] for u in updates])
            ends = (state[FLOATS][:p] - ends) / normalizers[:, None] * (weights @ normalizers)
        collected.append(float(np.sqrt(weights @ np.square(ends - weights @ ends).sum(1))))
        total: dict[str, Any] = {}
        for update in updates:
            part = method.contribution(state, update)
            total = {name: total.get(name, 0) + array for name, array in part.items()}
        state = method.finish(state, total, CLIENTS)
    return collected


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fednova"])
def test_divergence_is_the_distance_of_the_clients_from_their_mean(tmp_path: Path, method: str) -> None:
    settings = config(method=method, virtual=OFF, momentum=0.5)
    reported = [entry["divergence"] for entry in history_of(simulated(tmp_path, settings).path)]
    expected = expected_divergence(settings)
    assert reported == pytest.approx(expected, rel=1e-3)
    assert min(expected) > 0.01


def test_divergence_is_zero_for_one_client_and_absent_if_switched_off(tmp_path: Path) -> None:
    alone = history_of(simulated(tmp_path / "alone", config(virtual=OFF, per_round=1)).path)
    assert max(entry["divergence"] for entry in alone) < 1e-3
    off = history_of(simulated(tmp_path / "off", config(virtual=OFF, divergence=False)).path)
    assert not any("divergence" in entry for entry in off)


@pytest.mark.process
@pytest.mark.parametrize(
    ("method", "virtual"),
    [
        pytest.param("scaffold", ON, marks=pytest.mark.slow),
        pytest.param("fednova", OFF, marks=pytest.mark.slow),
        pytest.param("fedavg", ON, marks=pytest.mark.slow),
    ],
)
def test_workers_and_real_programs_report_the_same_rounds(tmp_path: Path, method: str, virtual: dict[str, Any]) -> None:
    settings = config(method=method, virtual=virtual, client_eval_every=1)
    one, two = (simulated(tmp_path / str(n), settings, n) for n in (1, 2))
    rows: list[Transfer] = []
    InProcessRun(WORKLOAD, settings, tmp_path / "real", NODES, seed=SEED, recorder=rows.append).run()
    expected = history_of(one.path)
    assert history_of(two.path) == expected
    assert history_of(tmp_path / "real") == expected
    names = {"divergence", "lr", "train_ce", "payload_up", "dense_down", "client_acc_worst", "test_loss"}
    names |= {"virtual_ce", "align_loss", "noise_loss", "virtual_acc"} if virtual is ON else set()
    assert all(names <= entry.keys() for entry in expected)
    files = output_files(one.path)
    assert output_files(two.path) == files
    assert output_files(tmp_path / "real") == files


def output_files(folder: Path) -> list[Any]:
    """Return the content of the other output files; states are parsed, since the order of their metadata varies."""
    collected: list[Any] = [(folder / name).read_bytes() for name in ("clients.jsonl", "partition.json")]
    for which in ("best", "last"):
        tensors, metadata = load_state(folder / "states" / f"{which}.safetensors")
        collected += [metadata, {name: array.tobytes() for name, array in tensors.items()}]
    return collected


def test_round_loss_is_the_weighted_sum_of_its_terms(tmp_path: Path) -> None:
    virtual = {**ON, "weight": 0.5, "align_weight": 0.7, "noise_weight": 0.2}
    history = history_of(simulated(tmp_path, config(virtual=virtual)).path)
    for entry in history:
        terms = entry["train_ce"] + 0.5 * entry["virtual_ce"] + 0.7 * entry["align_loss"] + 0.2 * entry["noise_loss"]
        assert entry["train_loss"] == pytest.approx(terms, rel=1e-4)
        assert min(entry[name] for name in ("train_ce", "virtual_ce", "align_loss", "noise_loss")) > 0
    assert [entry["lr"] for entry in history] == pytest.approx([0.1 * 0.992**n for n in range(ROUNDS)])
    plain = history_of(simulated(tmp_path / "plain", config(virtual=OFF)).path)
    assert all(entry["train_ce"] == entry["train_loss"] for entry in plain)


def by_round(rows: list[dict[str, Any]]) -> list[Counter[str]]:
    """Sum the ledger's bytes from each round's last update to the next round's; other rows belong to no round."""
    sums = [Counter[str]() for _ in range(ROUNDS + 2)]
    ends = {row["round"]: i for i, row in enumerate(rows) if row["kind"] == "update"}
    for i, row in enumerate(rows):
        round_index = 1 + sum(i > end for end in ends.values()) if row["round"] else 0
        for size in ("dense", "payload", "frame"):
            sums[round_index][f"{size}_{row['direction']}"] += row[f"{size}_bytes"]
    return sums


@pytest.mark.parametrize("virtual", [OFF, {**ON, "distribution": "ship"}], ids=["plain", "shipped"])
def test_bytes_of_a_round_equal_those_in_the_ledger(tmp_path: Path, virtual: dict[str, Any]) -> None:
    directory = simulated(tmp_path, config(virtual=virtual))
    sums, metrics = by_round(directory.read_ledger().to_pylist()), list(directory.read_metrics())
    for entry, line in zip(history_of(directory.path), metrics, strict=True):
        expected = sums[entry["round"]]
        without_frames = {name: count for name, count in expected.items() if not name.startswith("frame")}
        assert {name: entry[name] for name in without_frames} == without_frames
        assert {name: line[f"{name}_bytes"] for name in expected} == expected
        assert not any(name.startswith("frame") for name in entry)
    assert len(sums[1]) == 6
    # Virtual data are sent to each client before its first round only.
    assert (sums[1]["dense_down"] > sums[1]["dense_up"]) == ("distribution" in virtual)


def test_seconds_per_phase_are_metrics_and_not_in_the_history(tmp_path: Path) -> None:
    directory = simulated(tmp_path, config(virtual=OFF))
    phases = {f"seconds_{phase}" for phase in ("train", "wait", "aggregate", "test")}
    for line in directory.read_metrics():
        assert phases <= line.keys()
        assert line["seconds_train"] > 0
        assert line["seconds_test"] > 0
        assert line["seconds_wait"] == 0  # clients are trained in this process
    assert not any("seconds" in name for entry in history_of(directory.path) for name in entry)
