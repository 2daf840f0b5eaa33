"""Every setting of a VHL run has its effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from farshore.algorithms.vhl.task import VHLTask
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import ConfigError
from farshore.core.seeds import Seed
from farshore.engines.federated.client_pool import cohort
from farshore.engines.federated.compute import resident_model
from farshore.engines.federated.drift_correction import Scaffold
from farshore.engines.federated.methods import CONTROL, VELOCITY
from farshore.runs.checkpoints import CheckpointStore
from farshore.simulations.clock import Devices
from farshore.simulations.federated.simulation import Simulation
from farshore.simulations.in_process import InProcessRun

pytest.importorskip("sklearn")

CLIENTS = 3
SMALL: dict[str, Any] = {"rounds": 3, "per_round": 2, "local_epochs": 2, "batch": 128, "eval_every": 3, "lr": 0.05}
SMALL |= {"partition": {"kind": "iid"}, "checkpoint_every": 1}


pytestmark = pytest.mark.usefixtures("one_thread")


def config(virtual: dict[str, Any] | None = None, **more: Any) -> Any:
    return WORKLOAD.config.model_validate({**SMALL, **more, "virtual": {"per_class": 4, "batch": 8, **(virtual or {})}})


def task(settings: Any) -> VHLTask:
    made = WORKLOAD.task(settings, Seed(3), Path, CLIENTS)
    assert isinstance(made, VHLTask)
    return made


def trained(settings: Any, number: int = 1) -> np.ndarray[Any, Any]:
    """Weights of a client's first layer after one round."""
    problem = task(settings)
    flat = resident_model(problem, settings)
    method = problem.method(flat)
    state = method.start(flat)
    update = method.local(flat, method.sent(state), problem.work(flat, 0, number))
    weights = flat.module.state_dict()["stages.0.0.0.weight"]
    assert np.isfinite(update.tensors["floats"]).all()
    return weights.numpy().copy()


@pytest.fixture(scope="module")
def default_weights() -> np.ndarray[Any, Any]:
    """Weights trained with the default settings, in one thread as in the tests."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return trained(config())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "virtual",
    [
        {"enabled": False},
        {"per_class": 5},
        {"classes": 4},
        {"batch": 9},
        {"bn": "split"},
        {"shuffle_labels": True},
        {"weight": 0.5},
        {"align_weight": 0.5},
        {"noise_weight": 0.5},
        {"domain_weight": 0.5},
        {"temperature": 0.5},
        {"align_epochs": 1},
        {"detach": False},
        {"class_match": False},
        {"label_style": "patch"},
        {"feature_map": "random"},
        {"feature_map": "orthogonal"},
        {"feature_layer": "layer2"},
        {"gaussian_anchors": True},
    ],
    ids=str,
)
def test_every_virtual_setting_changes_the_trained_weights(
    default_weights: np.ndarray[Any, Any], virtual: dict[str, Any]
) -> None:
    assert not np.array_equal(default_weights, trained(config(virtual)))


def test_trained_weights_depend_on_the_seed_only(default_weights: np.ndarray[Any, Any]) -> None:
    assert np.array_equal(default_weights, trained(config()))
    assert np.array_equal(trained(config({"gaussian_anchors": True})), trained(config({"gaussian_anchors": True})))


def test_the_generator_is_the_configured_one() -> None:
    recipe = task(config({"generator": "conv_decoder"})).recipe
    assert recipe is not None
    assert recipe.generator == "conv_decoder"


@pytest.mark.parametrize("more", [{"precision": "bf16"}, {"channels": "three"}], ids=str)
def test_every_training_setting_changes_the_trained_weights(
    default_weights: np.ndarray[Any, Any], more: dict[str, Any]
) -> None:
    learned = trained(config(**more))
    assert learned.shape != default_weights.shape or not np.array_equal(default_weights, learned)


def test_gaussian_anchors_need_neither_images_nor_a_wider_head() -> None:
    problem = task(config({"gaussian_anchors": True}))
    assert problem.recipe is None
    assert problem.model().module.linear.out_features == problem.classes  # type: ignore[union-attr]
    assert WORKLOAD.assets(config({"gaussian_anchors": True}), problem) is None


def test_a_missing_feature_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="3 stages and no layer4"):
        task(config({"feature_layer": "layer4"})).model()


def test_participation_clock_decays_lr_only_in_the_clients_own_rounds() -> None:
    problem = task(config(lr_clock="participation", lr_decay=0.5))
    flat = problem.model()
    drawn = [r for r in range(1, 10) if 0 in cohort(Seed(3), r, CLIENTS, 2)]
    assert len(drawn) < 9  # otherwise both clocks would agree
    assert [problem.work(flat, 0, r).sgd.lr for r in drawn] == [0.05 * 0.5**i for i in range(len(drawn))]
    assert [problem.sgd_of(0, r).lr for r in drawn] == [0.05 * 0.5**i for i in range(len(drawn))]
    by_rounds = task(config(lr_decay=0.5))
    assert [by_rounds.work(flat, 0, r).sgd.lr for r in drawn] == [0.05 * 0.5 ** (r - 1) for r in drawn]


@pytest.mark.parametrize("devices", [{"over": 1.5}, {"availability": 0.5}], ids=str)
def test_participation_clock_is_refused_if_devices_change_the_cohorts(
    devices: dict[str, float], tmp_path: Path
) -> None:
    on = devices.get("availability", 1.0)
    groups = {"groups": [{"profile": {"availability": on, "period_s": 10.0}}]}

    def simulation(over: float, **more: Any) -> Simulation:
        made = Devices.model_validate({"population": groups, "seconds_per_step": 0.01, "over": over})
        return Simulation(WORKLOAD, config(**more), tmp_path / "run", CLIENTS, seed=3, devices=made)

    over = devices.get("over", 1.0)
    with pytest.raises(ConfigError, match="depend on seed and round only"):
        simulation(over, lr_clock="participation").run()
    assert not (tmp_path / "run").exists()
    simulation(over, lr_clock="rounds", rounds=1)._check_participation_clock(config())
    if on == 1.0:
        simulation(1.0, lr_clock="participation")._check_participation_clock(config(lr_clock="participation"))


def test_scaffold_option_1_gets_all_data_of_a_client_and_needs_plain_sgd() -> None:
    problem = task(config(method="scaffold", scaffold_option=1, server_lr=0.5))
    rule = problem.method(problem.model())
    assert isinstance(rule, Scaffold)
    assert (rule.option, rule.server_lr) == (1, 0.5)
    work = problem.work(problem.model(), 0, 1)
    images = torch.cat([batch[1] for _, batch in work.full_batches])
    assert len(images) == work.samples == len(problem.parts[0])
    assert sum(share for share, _ in work.full_batches) == pytest.approx(1)
    assert all(share == len(batch[1]) / work.samples for share, batch in work.full_batches)
    assert len({image.numpy().tobytes() for image in images}) > 0.95 * len(images)  # each once; few are duplicates
    assert not task(config(method="scaffold")).work(problem.model(), 0, 1).full_batches
    with pytest.raises(ValueError, match="scaffold_option 1 needs scaffold_momentum 0"):
        config(method="scaffold", scaffold_option=1, scaffold_momentum=0.5)


@pytest.mark.parametrize(("method", "momentum"), [("scaffold", 0.5), ("fedavg", 0.9)])
def test_scaffold_momentum_replaces_momentum_for_scaffold_only(method: str, momentum: float) -> None:
    problem = task(config(method=method, momentum=0.9, scaffold_momentum=0.5))
    assert problem.work(problem.model(), 0, 1).sgd.momentum == momentum


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "fednova"])
def test_kept_momentum_carries_over_to_the_next_round(method: str) -> None:
    settings = config(method=method, momentum=0.9, scaffold_momentum=0.9, client_momentum="keep")
    problem = task(settings)
    flat = problem.model()
    rule = problem.method(flat)
    extra = [CONTROL] if method == "scaffold" else []
    assert sorted(rule.client_state_sizes(flat)) == sorted([VELOCITY, *extra])
    memory: dict[str, torch.Tensor] = {}
    state = rule.start(flat)
    ends = []
    for _ in range(2):
        work = problem.work(flat, 0, 1)
        work.client_state = memory
        ends.append(rule.local(flat, rule.sent(state), work).tensors["floats"])
    assert memory[VELOCITY].any()
    assert not np.array_equal(*ends)  # same state and batches, but another velocity


@pytest.mark.slow
def test_kept_momentum_gives_the_same_bits_in_a_simulation_and_on_nodes(tmp_path: Path) -> None:
    settings = config(momentum=0.9, client_momentum="keep")
    names = [str(i) for i in range(CLIENTS)]
    InProcessRun(WORKLOAD, settings, tmp_path / "nodes", names, seed=3).run()
    Simulation(WORKLOAD, settings, tmp_path / "simulated", CLIENTS, seed=3).run()
    reset = config(momentum=0.9)
    Simulation(WORKLOAD, reset, tmp_path / "reset", CLIENTS, seed=3).run()
    nodes = CheckpointStore(tmp_path / "nodes" / "server").load(3)[0]["floats"]
    simulated, rested = (
        CheckpointStore(tmp_path / name / "checkpoints").load(3)[0]["floats"] for name in ("simulated", "reset")
    )
    assert np.array_equal(nodes, simulated)
    assert not np.array_equal(simulated, rested)
