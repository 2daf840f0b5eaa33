"""Batched training of several clients equals sequential training up to rounding."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from farshore.core.errors import ConfigError
from farshore.core.seeds import Seed
from farshore.engines.federated import batched
from farshore.engines.federated.drift_correction import FedNova, Scaffold
from farshore.engines.federated.local import Sgd
from farshore.engines.federated.methods import CONTROL, FLOATS, INTEGERS, FedAvg, FederatedMethod, Work
from farshore.engines.federated.supervised import Supervised
from farshore.models.flat_params import FlatModel

#: Samples per client: more than a batch, exactly one batch, less, a single sample; unordered.
RAGGED = (7, 23, 5, 10, 1, 18)
METHODS: dict[str, Callable[[FlatModel], FederatedMethod]] = {
    "fedavg": lambda _: FedAvg(),
    "scaffold": lambda _: Scaffold(),
    "kept momentum": lambda _: FedAvg(keeps_momentum=True),
    "fednova": lambda flat: FedNova(flat.layout.trainable),
}


pytestmark = pytest.mark.usefixtures("one_thread")


def logistic() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 5))


def small_cnn() -> nn.Module:
    ends = [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(72, 5)]
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), *ends)


def task(
    build: Callable[[], nn.Module], sgd: Sgd, method: str = "fedavg", sizes: Sequence[int] = RAGGED, epochs: int = 2
) -> Supervised:
    total = sum(sizes)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(total, 1, 8, 8, generator=generator)
    y = torch.randint(0, 5, (total,), generator=generator)
    parts = np.split(np.arange(total), np.cumsum(sizes)[:-1])
    return Supervised(x, y, x, y, parts, Seed(1), build, lambda _: sgd, METHODS[method], batch=5, epochs=epochs)


def works(made: Supervised, flat: FlatModel, *, with_state: bool) -> list[Work]:
    """Work of all clients, half of them with client state if ``with_state``."""
    used = made.method(flat)
    found = [made.work(flat, client, 1) for client in range(len(made.parts))]
    for client, work in enumerate(found):
        if with_state and client % 2:
            for name in used.client_state_sizes(flat):
                work.client_state[name] = torch.full((flat.layout.trainable,), 0.01 * client)
    return found


@pytest.mark.parametrize("build", [logistic, small_cnn])
@pytest.mark.parametrize(
    ("method", "sgd"),
    [
        ("fedavg", Sgd(0.1)),
        ("fedavg", Sgd(0.05, momentum=0.9, weight_decay=0.01)),
        ("fedavg", Sgd(0.1, mu=0.5)),
        ("scaffold", Sgd(0.1)),
        ("scaffold", Sgd(0.05, momentum=0.5)),
        ("kept momentum", Sgd(0.05, momentum=0.9)),
        ("fednova", Sgd(0.1, momentum=0.9, mu=0.1)),
    ],
)
def test_batched_training_equals_sequential_training(build: Callable[[], nn.Module], method: str, sgd: Sgd) -> None:
    made = task(build, sgd, method)
    flat = made.model()
    used = made.method(flat)
    down = used.start(flat)
    if CONTROL in down:
        down[CONTROL] += np.float32(0.02)
    sequential, batch = (works(made, flat, with_state=True) for _ in range(2))
    expected = [used.local(flat, down, work) for work in sequential]
    updates = batched.local(flat, used, down, batch)
    for client, (update, right) in enumerate(zip(updates, expected, strict=True)):
        assert (update.samples, update.steps) == (right.samples, right.steps)
        assert update.steps == 2 * -(-RAGGED[client] // 5)
        assert update.loss == pytest.approx(right.loss, abs=1e-6)
        assert update.tensors.keys() == right.tensors.keys()
        for name, array in right.tensors.items():
            assert update.tensors[name].dtype == array.dtype
            # A control variate is a difference of weights divided by the learning rate, and so are its errors.
            scale = 1 / sgd.lr if name == CONTROL else 1
            np.testing.assert_allclose(update.tensors[name], array, rtol=0, atol=1e-6 * scale)
        assert np.abs(right.tensors[FLOATS] - down[FLOATS]).max() > 1e-2
        assert (
            sequential[client].client_state.keys()
            == batch[client].client_state.keys()
            == used.client_state_sizes(flat).keys()
        )
        for name, tensor in sequential[client].client_state.items():
            torch.testing.assert_close(batch[client].client_state[name], tensor, rtol=0, atol=1e-6 / sgd.lr)


def test_frozen_parameters_stay_and_constant_buffers_are_allowed() -> None:
    def build() -> nn.Module:
        module = small_cnn()
        module[0].weight.requires_grad_(False)
        module[1].register_buffer("constant", torch.ones(3))
        return module

    made = task(build, Sgd(0.1))
    flat = made.model()
    method = made.method(flat)
    down = method.start(flat)
    expected = [method.local(flat, down, work) for work in works(made, flat, with_state=False)]
    for update, right in zip(
        batched.local(flat, method, down, works(made, flat, with_state=False)), expected, strict=True
    ):
        np.testing.assert_allclose(update.tensors[FLOATS], right.tensors[FLOATS], rtol=0, atol=1e-6)
        p = flat.layout.trainable
        assert np.array_equal(update.tensors[FLOATS][p:], down[FLOATS][p:])
        assert len(update.tensors[INTEGERS]) == 0


def test_clients_with_different_optimizers_each_use_their_own() -> None:
    made = task(logistic, Sgd(0.1))
    flat = made.model()
    method = made.method(flat)
    down = method.start(flat)
    some = works(made, flat, with_state=False)
    some[1] = replace(some[1], sgd=Sgd(0.01))
    expected = [method.local(flat, down, work) for work in some]
    for update, right in zip(batched.local(flat, method, down, some), expected, strict=True):
        np.testing.assert_allclose(update.tensors[FLOATS], right.tensors[FLOATS], rtol=0, atol=1e-6)


class Counting(nn.Linear):
    """Changes a buffer in its forward pass."""

    def __init__(self) -> None:
        super().__init__(64, 5)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return super().forward(x.flatten(1))


class Noisy(nn.Linear):
    """Draws random numbers without a dropout layer."""

    def __init__(self) -> None:
        super().__init__(64, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(F.dropout(x.flatten(1), 0.5))


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (lambda: nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 5)), r"layer '1' \(BatchNorm1d\)"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.1), nn.Linear(64, 5)), r"layer '1' \(Dropout\)"),
        (Counting, "changes its buffers"),
        (Noisy, "vmap does not support"),
    ],
)
def test_unsupported_models_are_refused_with_the_layers_name(build: Callable[[], nn.Module], why: str) -> None:
    made = task(build, Sgd(0.1))
    flat = made.model()
    method = made.method(flat)
    with pytest.raises(ConfigError, match=why) as caught:
        batched.local(flat, method, method.start(flat), works(made, flat, with_state=False))
    assert "sequential" in str(caught.value.hint)


def test_methods_with_own_training_and_tasks_without_sample_losses_are_refused() -> None:
    class Own(FedAvg):
        def local(self, flat: FlatModel, down: Any, work: Work) -> Any:
            raise AssertionError

    made = task(logistic, Sgd(0.1))
    flat = made.model()
    some = works(made, flat, with_state=False)
    with pytest.raises(ConfigError, match="Own overrides local training"):
        batched.check(flat, Own(), some)
    with pytest.raises(ConfigError, match="no loss per sample"):
        batched.check(flat, FedAvg(), [some[0], replace(some[1], sample_losses=None)])


def test_the_group_size_depends_on_the_size_of_the_model() -> None:
    assert batched.group_size(FlatModel(logistic())) == 32
    assert batched.group_size(FlatModel(nn.Linear(2000, 2000))) == 4
    assert batched.group_size(FlatModel(nn.Linear(5000, 5000))) == 1


def test_print_speed_of_fifty_logistic_regressions(capsys: pytest.CaptureFixture[str]) -> None:
    x, y = torch.randn(2500, 784), torch.randint(0, 10, (2500,))
    parts = np.arange(2500).reshape(50, 50)
    made = Supervised(x, y, x, y, list(parts), Seed(1), lambda: nn.Linear(784, 10), lambda _: Sgd(0.1), batch=10)
    flat = made.model()
    method = made.method(flat)
    down, some = method.start(flat), works(made, flat, with_state=False)
    size = batched.group_size(flat)
    groups = [some[first : first + size] for first in range(0, len(some), size)]

    def seconds(function: Callable[[], Any]) -> float:
        function()
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    sequential = seconds(lambda: [method.local(flat, down, work) for work in some])
    batch = seconds(lambda: [batched.local(flat, method, down, group) for group in groups])
    with capsys.disabled():
        print(f"\n50 clients, 784 -> 10, 5 steps of 10: {sequential:.3f} s sequential, {batch:.3f} s batched")
