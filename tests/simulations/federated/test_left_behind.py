"""Files in a run directory: best and last state, partition, virtual data, and each client's score."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.vhl.recipe import VirtualRecipe
from farshore.algorithms.vhl.virtual import VirtualData
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.seeds import Seed
from farshore.data.partition_files import load_partition
from farshore.engines.federated.methods import FLOATS, INTEGERS
from farshore.runs.checkpoints import CheckpointStore
from farshore.runs.directory import RunDirectory
from farshore.runs.history import read_history
from farshore.runs.model_states import load_state
from farshore.simulations.federated.simulation import Simulation

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.timeout(180), pytest.mark.usefixtures("one_thread")]

CLIENTS, ROUNDS, SEED = 6, 6, 5
#: With a learning rate so large that the score falls again before the end.
SETTINGS: dict[str, Any] = {"rounds": ROUNDS, "per_round": 3, "local_epochs": 1, "batch": 64, "lr": 0.5}
SETTINGS |= {"checkpoint_every": 2, "partition": {"kind": "lda", "alpha": 0.3, "min_size": 20}}
SETTINGS |= {"virtual": {"enabled": False}, "norm": "batch"}


def config(**settings: Any) -> Any:
    return WORKLOAD.config.model_validate({**SETTINGS, **settings})


def task_of(settings: Any) -> Any:
    return WORKLOAD.task(settings, Seed(SEED), Path, CLIENTS)


def run(path: Path, settings: Any) -> RunDirectory:
    Simulation(WORKLOAD, settings, path, CLIENTS, SEED).run()
    return RunDirectory.open(path)


def history_of(directory: RunDirectory) -> list[dict[str, Any]]:
    return read_history(directory.path, max(directory.checkpoints.steps()))


def states(directory: RunDirectory) -> dict[str, Any]:
    return {which: load_state(directory.path / "states" / f"{which}.safetensors") for which in ("best", "last")}


def same(one: Any, other: Any) -> bool:
    """Whether two saved states have equal tensors and metadata."""
    (tensors, metadata), (other_tensors, other_metadata) = one, other
    equal = all(np.array_equal(tensors[name], other_tensors[name]) for name in tensors)
    return metadata == other_metadata and tensors.keys() == other_tensors.keys() and equal


@pytest.mark.parametrize(
    ("norm", "execution", "rounds"), [("batch", "sequential", ROUNDS), ("group", "batched", ROUNDS - 2)]
)
def test_saved_states_are_those_of_the_best_and_the_last_round(
    tmp_path: Path, norm: str, execution: str, rounds: int
) -> None:
    # Which round is the best depends on the processor; with a large enough learning rate it is not the last.
    for lr in (0.3, 0.6, 1.2, 2.4):
        settings = config(norm=norm, execution=execution, rounds=rounds, lr=lr)
        directory = run(tmp_path / f"run-{lr}", settings)
        saved, scores = states(directory), [entry["acc"] for entry in history_of(directory)]
        if (best := int(np.argmax(scores)) + 1) < rounds:
            break
    assert best < rounds, "the last round is the best one: this test would prove nothing"
    assert saved["best"][1] == {"round": str(best), "acc": repr(max(scores))}
    assert saved["last"][1] == {"round": str(rounds), "acc": repr(scores[-1])}
    # The last state of a run that ends with that round is the best state of this run.
    shorter = run(tmp_path / "shorter", settings.model_copy(update={"rounds": best}))
    assert same(states(shorter)["last"], saved["best"])
    checkpoint, _ = directory.checkpoints.load(rounds)
    task = task_of(settings)
    for which, score in (("best", max(scores)), ("last", scores[-1])):
        flat = task.model()
        tensors = {name: torch.from_numpy(array.copy()) for name, array in saved[which][0].items()}
        flat.module.load_state_dict(tensors, strict=True)
        if which == "last":
            assert np.array_equal(flat.floats.numpy(), checkpoint[FLOATS])
        state = {FLOATS: flat.floats.numpy().copy(), INTEGERS: flat.integers.numpy().copy()}
        assert task.evaluate(flat, state)["acc"] == score


@pytest.mark.parametrize("killed_step", [2, 4, 6])
def test_run_killed_between_states_and_checkpoint_leaves_the_same_files_once_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_step: int
) -> None:
    uninterrupted = run(tmp_path / "whole", config(client_eval_every=1))

    class KilledError(BaseException):
        pass

    save = CheckpointStore.save

    def killed(self: CheckpointStore, step: int, *rest: Any, **named: Any) -> Any:
        if step == killed_step:
            raise KilledError
        return save(self, step, *rest, **named)

    monkeypatch.setattr(CheckpointStore, "save", killed)
    with pytest.raises(KilledError):
        run(tmp_path / "run", config(client_eval_every=1))
    monkeypatch.undo()
    interrupted = RunDirectory.open(tmp_path / "run")
    assert states(interrupted)["last"][1]["round"] == str(killed_step)
    assert max(interrupted.checkpoints.steps(), default=0) == killed_step - 2
    resumed = run(tmp_path / "run", config(client_eval_every=1))
    assert history_of(resumed) == history_of(uninterrupted)
    assert all(same(states(resumed)[which], states(uninterrupted)[which]) for which in ("best", "last"))
    # Rounds that were trained twice are reported once.
    names = {"partition.json", "partition-report.json", "clients.jsonl"}
    assert all((resumed.path / name).read_bytes() == (uninterrupted.path / name).read_bytes() for name in names)


def test_each_client_is_scored_on_a_test_part_with_its_label_distribution(tmp_path: Path) -> None:
    settings = config(client_eval_every=4)
    directory, task = run(tmp_path, settings), task_of(settings)
    trained, tested = task.images.train.labels, task.images.test.labels
    assert sorted(np.concatenate(task.test_parts)) == list(range(len(tested)))
    for part, own in zip(task.parts, task.test_parts, strict=True):
        for label in range(10):
            share = (trained[part.numpy()] == label).sum() / (trained == label).sum()
            assert abs((tested[own] == label).sum() - share * (tested == label).sum()) <= 1
    lines = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    assert [line["round"] for line in lines] == [4, 6]  # every fourth round, and the last
    # The last round's scores, computed by hand.
    flat = task.model()
    tensors, _ = states(directory)["last"]
    flat.module.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()})
    x = task._prepare(task._test_x)
    with torch.no_grad():
        correct = (flat.module.eval()(x)[0].argmax(1) == torch.from_numpy(tested)).numpy()
    expected = [correct[own].mean() if len(own) else None for own in task.test_parts]
    assert lines[-1]["acc"] == pytest.approx(expected)
    entry = history_of(directory)[-1]
    scores = np.array([score for score in expected if score is not None])
    assert entry["client_acc_mean"] == pytest.approx(scores.mean())
    assert entry["client_acc_std"] == pytest.approx(scores.std())
    assert entry["client_acc_worst"] == pytest.approx(scores.min())
    assert entry["client_acc_worst"] < entry["client_acc_p10"] < entry["client_acc_mean"]
    assert [e["round"] for e in history_of(directory) if "client_acc_mean" in e] == [4, 6]


def test_partition_and_virtual_data_are_saved(tmp_path: Path) -> None:
    settings = config(rounds=1, virtual={"per_class": 4, "batch": 16})
    run(tmp_path / "run", settings)
    task = task_of(settings)
    partition, parts = load_partition(tmp_path / "run" / "partition.json", task.images.train.labels)
    assert partition == task.partition
    assert [part.tolist() for part in parts] == [part.tolist() for part in task.parts]
    saved = json.loads((tmp_path / "run" / "partition-report.json").read_text())
    held = [np.bincount(task.images.train.labels[part.numpy()], minlength=10).tolist() for part in task.parts]
    assert saved["counts"] == held
    metadata = json.loads((tmp_path / "run" / "virtual.json").read_text())
    virtual_data = VirtualData.from_recipe(VirtualRecipe.model_validate(metadata["recipe"]))
    assert virtual_data.digest == metadata["sha256"] == task.virtual_data.digest
    assert (metadata["images"], metadata["distribution"]) == (40, "seed")
    assert metadata["bytes"] == virtual_data.images.numel()
    run(tmp_path / "plain", config(rounds=1))
    assert not (tmp_path / "plain" / "virtual.json").exists()
