"""With virtual data, clients without common classes learn more similar class features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from farshore.algorithms.vhl.task import VHLTask
from farshore.algorithms.vhl.workload import WORKLOAD
from farshore.core.seeds import Seed

pytest.importorskip("sklearn")

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = range(6)
SETTINGS: dict[str, Any] = {"per_round": 2, "local_epochs": 2, "batch": 32, "lr": 0.1, "norm": "group"}


def agreement(seed: int, virtual: dict[str, Any]) -> float:
    """Mean cosine similarity, over all classes, of the mean test features of two clients after one round.

    One client has the digits 0 to 4, the other 5 to 9.
    """
    settings = WORKLOAD.config.model_validate({**SETTINGS, "virtual": {"per_class": 50, **virtual}})
    task = WORKLOAD.task(settings, Seed(seed), Path, 2)
    assert isinstance(task, VHLTask)
    labels = torch.from_numpy(task.images.train.labels)
    task.parts = [torch.nonzero(labels < 5).flatten(), torch.nonzero(labels >= 5).flatten()]
    flat = task.model()
    method = task.method(flat)
    state = method.start(flat)
    means = []
    for client in range(2):
        update = method.local(flat, method.sent(state), task.work(flat, client, 1))
        flat.load(update.tensors["floats"], update.tensors["integers"])
        with torch.no_grad():
            features = flat.module(task._prepare(task._test_x))[1]
        means.append(torch.stack([features[task._test_y == c].mean(0) for c in range(task.classes)]))
    return float(F.cosine_similarity(*means, dim=1).mean())


def test_virtual_data_make_features_of_clients_without_common_classes_more_similar() -> None:
    with_virtual = np.array([agreement(seed, {}) for seed in SEEDS])
    without = np.array([agreement(seed, {"enabled": False}) for seed in SEEDS])
    print(with_virtual.round(3), without.round(3))
    assert (with_virtual > without).all()
