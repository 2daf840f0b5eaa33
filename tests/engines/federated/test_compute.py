"""Device and precision: everything a client computes is on its device, and half precision trains."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.core.devices import ComputeSettings, Precision
from farshore.core.errors import ConfigError
from farshore.core.seeds import Seed
from farshore.engines.federated import batched
from farshore.engines.federated.compute import resident_model, to_device
from farshore.engines.federated.config import FederatedConfig
from farshore.engines.federated.drift_correction import FedNova, Scaffold
from farshore.engines.federated.local import Sgd, step, train
from farshore.engines.federated.means import Means
from farshore.engines.federated.methods import CONTROL, FLOATS, VELOCITY, FedAvg, Work
from farshore.engines.federated.supervised import Supervised
from farshore.models.flat_params import FlatModel

from .fake_accelerator import DEVICE, fake_accelerator

pytestmark = pytest.mark.usefixtures("one_thread")

METHODS: dict[str, Any] = {
    "fedavg": lambda flat: FedAvg(),
    "kept momentum": lambda flat: FedAvg(keeps_momentum=True),
    "scaffold": lambda flat: Scaffold(keeps_momentum=True),
    "scaffold, option 1": lambda flat: Scaffold(option=1),
    "fednova": lambda flat: FedNova(flat.layout.trainable),
}
SGD = Sgd(0.1, momentum=0.9, weight_decay=1e-3, mu=0.1)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def task(build: Any = network, method: str = "fedavg", sgd: Sgd = SGD) -> Supervised:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(60, 6, generator=generator)
    y = (x @ torch.randn(6, 3, generator=generator)).argmax(1)
    parts = [np.arange(client, 60, 3) for client in range(3)]
    return Supervised(x, y, x, y, parts, Seed(1), build, lambda _: sgd, METHODS[method], batch=8, epochs=2)


def work_of(made: Supervised, flat: FlatModel, client: int = 0) -> Work:
    work = made.work(flat, client, 1)
    whole = [(1 / 3, batch) for batch in work.batches[:3]]
    return replace(work, full_batches=whole, means=Means(["loss"]))


@pytest.fixture
def accelerator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with fake_accelerator(monkeypatch):
        yield


@pytest.mark.parametrize("method", METHODS)
def test_a_client_trains_on_its_device_and_replies_from_the_cpu(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    made = task(method=method)
    used, expected = made.method(made.model()), made.method(made.model()).start(made.model())
    works = [work_of(made, made.model())]
    with fake_accelerator(monkeypatch):
        flat = resident_model(made, ComputeSettings())
        assert {p.device for p in (*flat.parameters, *flat.module.buffers(), flat.floats)} == {DEVICE}
        work = replace(made.work(flat, 0, 1), full_batches=works[0].full_batches)
        update = used.local(flat, expected, work)
    assert {name: array.shape for name, array in used.reply(expected).items()} == {
        name: np.asarray(array).shape for name, array in update.tensors.items()
    }
    assert update.steps == len(work.batches)
    assert {tensor.device.type for tensor in work.client_state.values()} <= {"cpu"}


def test_momentum_that_a_client_keeps_returns_from_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made, copies = task(method="kept momentum"), []
    method, copy = made.method(made.model()), torch.Tensor.copy_
    down = method.start(made.model())

    def recorded(self: torch.Tensor, source: torch.Tensor, *more: Any) -> torch.Tensor:
        copies.append((self, source.device))
        return copy(self, source, *more)

    with fake_accelerator(monkeypatch):
        flat = resident_model(made, ComputeSettings())
        work = made.work(flat, 0, 1)
        monkeypatch.setattr(torch.Tensor, "copy_", recorded)
        method.local(flat, down, work)
    assert [source for target, source in copies if target is work.client_state[VELOCITY]] == [DEVICE]


@pytest.mark.parametrize("method", ["fedavg", "kept momentum", "scaffold", "fednova"])
def test_batched_clients_train_on_the_device(monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    made = task(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), method)
    used = made.method(made.model())
    down = used.start(made.model())

    def step_on_device(*given: Any) -> None:
        vectors = [each for part in given if isinstance(part, list) for each in part]
        assert {each.device for each in vectors} == {DEVICE}  # torch does not check it for all of these operations
        step(*given)

    monkeypatch.setattr(batched, "step", step_on_device)
    with fake_accelerator(monkeypatch):
        flat = resident_model(made, ComputeSettings())
        updates = batched.local(flat, used, down, [made.work(flat, client, 1) for client in range(3)])
    assert [update.steps for update in updates] == [6, 6, 6]


def test_the_model_is_evaluated_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    made = task()
    state = FedAvg().start(made.model())
    devices = []
    with fake_accelerator(monkeypatch):
        flat = resident_model(made, ComputeSettings())
        flat.module.register_forward_hook(lambda *seen: devices.append(seen[1][0].device))
        monkeypatch.setattr(torch.Tensor, "__int__", lambda self: 0)
        monkeypatch.setattr(torch.Tensor, "__float__", lambda self: 0.0)
        made.evaluate(flat, state)
    assert devices == [DEVICE]


def test_a_batch_on_another_device_than_the_model_would_fail(accelerator: None) -> None:
    """The harness itself: without the move, a batch of the CPU meets a model of the accelerator."""
    made = task()
    flat = resident_model(made, ComputeSettings())
    work = made.work(flat, 0, 1)
    with pytest.raises(RuntimeError, match=r"[Dd]evice"):
        work.objective(work.batches[0])


def test_the_tensors_of_any_batch_are_moved(accelerator: None) -> None:
    pair = namedtuple("pair", "x y")
    x = torch.ones(2)
    moved = to_device({"a": [x, 1, "text"], "b": pair(x, (x, None))}, DEVICE)
    assert moved["a"][1:] == [1, "text"]
    assert isinstance(moved["b"], pair)
    assert {each.device for each in (moved["a"][0], moved["b"].x, moved["b"].y[0])} == {DEVICE}


def test_nothing_is_copied_on_the_cpu() -> None:
    flat = resident_model(task(), ComputeSettings(device="cpu"))
    before = flat.floats.data_ptr()
    batch = torch.ones(2)
    assert to_device((batch,), torch.device("cpu"))[0] is batch
    flat.place(torch.device("cpu"), "fp32")
    assert flat.floats.data_ptr() == before
    velocity = torch.zeros(flat.layout.trainable)
    work = work_of(task(), flat)
    work.client_state[VELOCITY] = velocity
    method = FedAvg(keeps_momentum=True)
    method.local(flat, method.start(flat), work)
    assert work.client_state[VELOCITY] is velocity
    assert velocity.any()


def test_a_missing_device_is_refused() -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="no 'cuda' device"):
        resident_model(task(), ComputeSettings(device="cuda"))


def test_device_and_precision_are_settings_of_every_federated_method() -> None:
    config = FederatedConfig.model_validate({"device": "cpu", "precision": "fp16"})
    assert (config.device, config.precision) == ("cpu", "fp16")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", METHODS)
def test_half_precision_trains_like_full_precision(method: str, precision: Precision) -> None:
    weights = {}
    for each in ("fp32", precision):
        made = task(method=method, sgd=Sgd(0.1))
        flat = resident_model(made, ComputeSettings(device="cpu", precision=each))
        used = made.method(flat)
        down = used.start(flat)
        for _ in range(5):
            update = used.local(flat, down, work_of(made, flat))
            down = {**down, FLOATS: update.tensors[FLOATS]}
        assert flat.floats.dtype == torch.float32
        weights[each] = down[FLOATS]
        if CONTROL in update.tensors:
            assert np.isfinite(update.tensors[CONTROL]).all()
    moved = np.linalg.norm(weights["fp32"] - FedAvg().start(task().model())[FLOATS])
    difference = np.linalg.norm(weights[precision] - weights["fp32"])
    assert 0 < difference < 0.05 * moved


def test_small_gradients_survive_in_fp16_because_the_loss_is_scaled() -> None:
    """Gradients of about 1e-9 are 0 in fp16 without a scale."""
    changes = {}
    for precision in ("fp32", "fp16"):
        flat = FlatModel(nn.Linear(4, 1, bias=False))
        flat.place(torch.device("cpu"), precision)
        before = flat.floats.clone()
        batch = torch.full((8, 4), 1e-4)
        train(flat, lambda x: flat.module(x).float().mean() * 1e-4, [batch], Sgd(1e6))  # noqa: B023
        changes[precision] = float((flat.floats - before).norm())
    assert changes["fp32"] > 0
    assert changes["fp16"] == pytest.approx(changes["fp32"], rel=0.1)


def test_a_step_whose_gradient_overflows_is_skipped_and_the_scale_is_halved() -> None:
    flat = FlatModel(nn.Linear(1, 1, bias=False))
    flat.place(torch.device("cpu"), "fp16")
    before = flat.floats.clone()

    def steep(x: torch.Tensor) -> torch.Tensor:
        return flat.module(x).float().sum()

    batches = [torch.full((1, 1), 100.0)] * 3  # 100 · 1024 overflows, 100 · 512 does not
    result = train(flat, steep, batches, Sgd(0.001))
    assert result.steps == 2
    assert float(before - flat.floats) == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_batched_clients_need_fp32(precision: Precision) -> None:
    made = task(lambda: nn.Linear(6, 3))
    flat = resident_model(made, ComputeSettings(device="cpu", precision=precision))
    with pytest.raises(ConfigError, match=f"batched training is in fp32, not {precision}"):
        batched.check(flat, FedAvg(), [made.work(flat, 0, 1)])


def test_the_state_is_loaded_from_read_only_arrays(accelerator: None) -> None:
    made = task()
    flat = resident_model(made, ComputeSettings())
    floats = np.zeros(flat.layout.total, np.float32)
    floats.flags.writeable = False
    flat.load(floats, np.zeros(1, np.int64))
    assert flat.floats.device == DEVICE
