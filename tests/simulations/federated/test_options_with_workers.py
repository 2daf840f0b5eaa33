"""Server retraining and SCAFFOLD's whole gradients: the same bits on all backends, and approximately when batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.errors import ConfigError
from farshore.runs.directory import RunDirectory
from farshore.simulations.federated.simulation import Simulation

pytest.importorskip("sklearn")
pytestmark = [pytest.mark.process, pytest.mark.timeout(240), pytest.mark.usefixtures("one_thread")]

CLIENTS, ROUNDS, SEED = 6, 3, 5
SMALL: dict[str, Any] = {"rounds": ROUNDS, "per_round": 5, "local_epochs": 1, "batch": 64, "lr": 0.05, "eval_every": 3}
SMALL |= {"partition": {"kind": "lda", "alpha": 0.5, "min_size": 20}, "norm": "group"}
RETRAINED: dict[str, Any] = {"virtual": {"per_class": 6, "batch": 20, "server_retrain": 4}}
WHOLE: dict[str, Any] = {"virtual": {"enabled": False}, "method": "scaffold", "scaffold_option": 1}


def final_state(folder: Path, settings: dict[str, Any], **options: Any) -> dict[str, Any]:
    """Return the final state of a run, including control variates."""
    config = WORKLOAD.config.model_validate({**SMALL, **settings})
    Simulation(WORKLOAD, config, folder, CLIENTS, SEED, **options).run()
    return RunDirectory.open(folder).checkpoints.load(ROUNDS)[0]


def differing(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if one[name].tobytes() != other[name].tobytes()]


def test_server_retraining_has_the_same_bits_with_two_workers(tmp_path: Path) -> None:
    one, two = (final_state(tmp_path / str(n), RETRAINED, workers=n) for n in (1, 2))
    assert differing(one, two) == []
    plain = final_state(tmp_path / "plain", {"virtual": {**RETRAINED["virtual"], "server_retrain": 0}})
    assert "floats" in differing(one, plain)


def test_server_retraining_cannot_be_batched(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no loss per sample"):
        final_state(tmp_path / "run", {**RETRAINED, "execution": "batched"})


@pytest.mark.slow
def test_whole_gradients_have_the_same_bits_with_two_workers_and_approximate_ones_batched(tmp_path: Path) -> None:
    one, two = (final_state(tmp_path / str(n), WHOLE, workers=n) for n in (1, 2))
    assert differing(one, two) == []
    at_once = {**WHOLE, "execution": "batched"}
    batched, batched_two = (final_state(tmp_path / f"batched {n}", at_once, workers=n) for n in (1, 2))
    assert differing(batched, batched_two) == []
    assert batched.keys() == one.keys()
    for name, array in one.items():
        np.testing.assert_allclose(batched[name], array, rtol=0, atol=2e-4, err_msg=name)
    steps = final_state(tmp_path / "steps", {**WHOLE, "scaffold_option": 2})
    assert np.abs(steps["control"] - one["control"]).max() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("settings", [RETRAINED, WHOLE], ids=["server_retrain", "scaffold_option"])
def test_both_options_have_the_same_bits_on_ray(tmp_path: Path, settings: dict[str, Any]) -> None:
    pytest.importorskip("ray", reason="the extra 'scale' is not installed")
    ray = final_state(tmp_path / "ray", settings, workers=2, backend="ray")
    assert differing(ray, final_state(tmp_path / "alone", settings)) == []


def test_timing_probe_includes_whole_gradients(tmp_path: Path) -> None:
    final_state(tmp_path / "run", {**WHOLE, "execution": "auto"})
    found = RunDirectory.open(tmp_path / "run").info["execution"]
    assert found["batched_seconds"] > 0, found["why"]
