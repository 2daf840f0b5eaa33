"""FedAvg, FedProx, SCAFFOLD and FedNova follow their published equations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from farshore.core.errors import ConfigError
from farshore.engines.federated.drift_correction import FedNova, Scaffold
from farshore.engines.federated.local import Sgd, normalizer, train
from farshore.engines.federated.means import Means
from farshore.engines.federated.methods import FedAvg, FederatedMethod, Update, Work
from farshore.engines.federated.tree import TreeSum
from farshore.models.flat_params import FlatModel

CLIENTS = 3


def net(norm: bool = False) -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(6, 8), *([nn.BatchNorm1d(8)] if norm else []), nn.Tanh(), nn.Linear(8, 3))


def batches(client: int, steps: int, size: int = 16) -> list[Any]:
    generator = torch.Generator().manual_seed(client)
    x = torch.randn(steps * size, 6, generator=generator) + client
    y = torch.randint(0, 3, (steps * size,), generator=generator)
    return list(zip(x.split(size), y.split(size), strict=True))


def objective(module: nn.Module) -> Callable[[Any], torch.Tensor]:
    return lambda batch: nn.functional.cross_entropy(module(batch[0]), batch[1])


class Federation:
    """Clients with state, and rounds of a method over them."""

    def __init__(
        self, method: Callable[[FlatModel], FederatedMethod], *, norm: bool = False, steps: tuple[int, ...] = (3, 3, 3)
    ):
        self.flat = FlatModel(net(norm))
        self.method = method(self.flat)
        self.state = self.method.start(self.flat)
        self.steps = steps
        self.client_states: list[dict[str, torch.Tensor]] = [{} for _ in range(CLIENTS)]

    def local(self, client: int, sgd: Sgd) -> Update:
        steps = self.steps[client]
        work = Work(
            objective(self.flat.module),
            batches(client, steps),
            16 * steps,
            sgd,
            self.client_states[client],
            full_batches=[(1 / steps, batch) for batch in batches(client, steps)],
        )
        return self.method.local(self.flat, self.state, work)

    def round(self, sgd: Sgd, cohort: tuple[int, ...] = (0, 1, 2)) -> list[Update]:
        tree = TreeSum(len(cohort))
        updates = [self.local(client, sgd) for client in cohort]
        for position, update in enumerate(updates):
            tree.add(position, self.method.contribution(self.state, update))
        total = tree.total()
        assert total is not None
        self.state = self.method.finish(self.state, total, CLIENTS)
        return updates


SGD = Sgd(0.1)


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.5, "weight_decay": 1e-2}])
def test_local_training_equals_torch_sgd(settings: dict[str, float]) -> None:
    module = net(norm=True)
    flat = FlatModel(copy.deepcopy(module))
    train(flat, objective(flat.module), batches(0, 5), Sgd(0.1, **settings))
    optimizer = torch.optim.SGD(module.parameters(), 0.1, **settings)
    for batch in batches(0, 5):
        optimizer.zero_grad()
        objective(module)(batch).backward()
        optimizer.step()
    for name, value in module.state_dict().items():
        assert torch.allclose(flat.module.state_dict()[name], value, atol=1e-7), name


def test_kept_momentum_continues_in_the_next_round() -> None:
    once, twice = FlatModel(net()), FlatModel(net())
    sgd = Sgd(0.1, momentum=0.9)
    train(once, objective(once.module), batches(0, 4), sgd)
    velocity = torch.zeros(twice.layout.trainable)
    for part in (batches(0, 4)[:1], batches(0, 4)[1:]):
        train(twice, objective(twice.module), part, sgd, velocity=velocity)
    assert torch.equal(once.floats, twice.floats)


def test_the_mean_is_weighted_by_samples_and_integers_stay_integers() -> None:
    method = FedAvg()
    down: dict[str, Any] = {}
    tree = TreeSum(2)
    for position, (n, value, count) in enumerate([(1, 1.0, 10), (3, 3.0, 30)]):
        tensors = {"floats": np.full(4, value, np.float32), "integers": np.array([count])}
        tree.add(position, method.contribution(down, Update(tensors, n, 1, 0.0)))
    total = tree.total()
    assert total is not None
    mean = method.finish(down, total, 2)
    assert mean["floats"].tolist() == [2.5] * 4
    assert mean["floats"].dtype == np.float32
    assert (mean["integers"].tolist(), mean["integers"].dtype) == ([25], np.int64)


def test_fedavg_is_the_weighted_mean_of_clients_trained_alone() -> None:
    fed = Federation(lambda _: FedAvg(), norm=True, steps=(2, 3, 5))
    start = fed.state
    expected = []
    for client in range(CLIENTS):
        flat = FlatModel(net(norm=True))
        train(flat, objective(flat.module), batches(client, fed.steps[client]), SGD)
        expected.append(flat.floats.numpy() * fed.steps[client] / 10)
    fed.round(SGD)
    assert np.allclose(fed.state["floats"], sum(expected), atol=1e-6)
    assert fed.state["integers"].tolist() == [round((4 + 9 + 25) / 10)]
    assert not np.array_equal(start["floats"], fed.state["floats"])


def test_fedprox_without_mu_is_fedavg_and_its_gradient_that_of_the_squared_norm() -> None:
    plain, prox = Federation(lambda _: FedAvg()), Federation(lambda _: FedAvg())
    plain.round(SGD)
    prox.round(Sgd(0.1, mu=0.0))
    assert np.array_equal(plain.state["floats"], prox.state["floats"])
    flat, reference = FlatModel(net()), net()
    train(flat, objective(flat.module), batches(0, 3), Sgd(0.1, mu=0.7))
    start = copy.deepcopy(reference)
    optimizer = torch.optim.SGD(reference.parameters(), 0.1)
    for batch in batches(0, 3):
        optimizer.zero_grad()
        distance = sum(
            (p - q.detach()).square().sum() for p, q in zip(reference.parameters(), start.parameters(), strict=True)
        )
        (objective(reference)(batch) + 0.35 * distance).backward()
        optimizer.step()
    expected = torch.cat([p.detach().reshape(-1) for p in reference.parameters()])
    assert torch.allclose(flat.trained, expected, atol=1e-6)


def test_scaffolds_first_round_is_unweighted_fedavg() -> None:
    scaffold = Federation(lambda _: Scaffold(), norm=True, steps=(2, 3, 5))
    updates = scaffold.round(SGD)
    mean = sum(u.tensors["floats"] for u in updates) / CLIENTS
    assert np.allclose(scaffold.state["floats"], mean, atol=1e-6)


def test_a_control_variate_after_one_full_batch_step_is_the_gradient() -> None:
    scaffold = Federation(lambda _: Scaffold(), steps=(1, 1, 1))
    expected = []
    for client in range(CLIENTS):
        module = net()
        objective(module)(batches(client, 1)[0]).backward()
        expected.append(torch.cat([p.grad.reshape(-1) for p in module.parameters()]))  # type: ignore[union-attr]
    scaffold.round(SGD)
    for client_state, gradient in zip(scaffold.client_states, expected, strict=True):
        assert torch.allclose(client_state["control"], gradient, atol=1e-6)


def test_scaffolds_server_learning_rate_applies_to_trained_parameters_only() -> None:
    whole, half = (Federation(lambda _, lr=lr: Scaffold(lr), norm=True) for lr in (1.0, 0.5))  # type: ignore[misc]
    start, p = whole.state["floats"].copy(), whole.flat.layout.trainable
    whole.round(SGD)
    half.round(SGD)
    assert np.allclose(half.state["floats"][:p], (start[:p] + whole.state["floats"][:p]) / 2, atol=1e-6)
    assert np.array_equal(half.state["floats"][p:], whole.state["floats"][p:])
    assert not np.allclose(start[:p], whole.state["floats"][:p])


@pytest.mark.parametrize("norm", [False, True])
def test_option_1_uses_the_full_batch_gradient_at_the_rounds_state(norm: bool) -> None:
    sgd = Sgd(0.1, weight_decay=0.05)
    fed = Federation(lambda _: Scaffold(option=1), norm=norm, steps=(2, 3, 5))
    plain = Federation(lambda _: Scaffold(), norm=norm, steps=(2, 3, 5))
    updates, first = fed.round(sgd), plain.round(sgd)
    for client, (update, client_state) in enumerate(zip(updates, fed.client_states, strict=True)):
        module = net(norm)
        # Batches have equal sizes, so the mean of their losses is the mean over the samples.
        losses = [objective(module)(batch) for batch in batches(client, fed.steps[client])]
        torch.stack(losses).mean().backward()
        expected = torch.cat([(p.grad + 0.05 * p.detach()).reshape(-1) for p in module.parameters()])  # type: ignore[operator]
        assert torch.allclose(client_state["control"], expected, atol=1e-6)
        assert np.allclose(update.tensors["control"], expected.numpy(), atol=1e-6)  # the change, from c_k = 0
        # The full-batch pass changes neither the training nor batch norm statistics.
        assert np.array_equal(update.tensors["floats"], first[client].tensors["floats"])
        assert np.array_equal(update.tensors["integers"], first[client].tensors["integers"])
    fed.round(sgd)
    mean = torch.stack([m["control"] for m in fed.client_states]).mean(0)
    assert np.allclose(fed.state["control"], mean.numpy(), atol=1e-6)


def test_both_options_agree_if_a_round_is_one_full_batch_step() -> None:
    first, second = (Federation(lambda _, o=o: Scaffold(option=o), steps=(1, 1, 1)) for o in (1, 2))  # type: ignore[misc]
    for _ in range(3):
        first.round(Sgd(0.1, weight_decay=0.01))
        second.round(Sgd(0.1, weight_decay=0.01))
    assert np.allclose(first.state["control"], second.state["control"], atol=1e-5)
    assert np.allclose(first.state["floats"], second.state["floats"], atol=1e-5)
    assert np.abs(first.state["control"]).max() > 0.01


def test_the_full_batch_pass_is_not_reported_as_training() -> None:
    module = nn.Linear(1, 1, bias=False)
    flat, means = FlatModel(module), Means(["value"])

    def objective(batch: float) -> torch.Tensor:
        means.add(torch.tensor(batch))
        return module.weight.sum() * batch

    work = Work(objective, [1.0, 2.0], 2, SGD, means=means, full_batches=[(1.0, 9.0)])
    assert Scaffold(option=1).local(flat, Scaffold().start(flat), work).metrics == {"value": 1.5}


def test_option_1_needs_a_task_with_full_batches() -> None:
    flat = FlatModel(net())
    work = Work(objective(flat.module), batches(0, 1), 16, SGD)
    with pytest.raises(ConfigError, match=r"Work\.full_batches"):
        Scaffold(option=1).local(flat, Scaffold().start(flat), work)


def test_with_momentum_control_variates_are_divided_by_the_normalizer() -> None:
    """The control variate of a linear loss must be its constant gradient."""
    module = nn.Linear(3, 1, bias=False)
    flat = FlatModel(module)
    slope = torch.tensor([1.0, -2.0, 0.5])
    scaffold = Scaffold()
    work = Work(lambda _: (module.weight[0] * slope).sum(), [None] * 7, 7, Sgd(0.01, momentum=0.9))
    scaffold.local(flat, scaffold.start(flat), work)
    assert torch.allclose(work.client_state["control"], slope, atol=1e-4)


def test_with_momentum_corrections_still_cancel_the_drift() -> None:
    """Clients with different slopes end rounds at the same point once their control variates have converged."""
    module = nn.Linear(3, 1, bias=False)
    flat = FlatModel(module)
    scaffold, sgd = Scaffold(), Sgd(0.001, momentum=0.8)
    slopes = torch.tensor([[1.0, 0.0, 2.0], [-3.0, 1.0, 1.0]])
    client_states: list[dict[str, torch.Tensor]] = [{}, {}]
    state = scaffold.start(flat)
    distances = []
    for _ in range(40):
        tree, ends = TreeSum(2), []
        for k, client_state in enumerate(client_states):
            work = Work(lambda _, k=k: (module.weight[0] * slopes[k]).sum(), [None] * 5, 5, sgd, client_state)  # type: ignore[misc]
            update = scaffold.local(flat, state, work)
            ends.append(update.tensors["floats"])
            tree.add(k, scaffold.contribution(state, update))
        total = tree.total()
        assert total is not None
        state = scaffold.finish(state, total, 2)
        distances.append(float(np.abs(ends[0] - ends[1]).max()))
    assert distances[-1] < 1e-3 * distances[0]


def test_the_servers_control_variate_is_the_mean_of_the_clients() -> None:
    full = Federation(lambda _: Scaffold(), norm=True, steps=(2, 3, 5))
    for _ in range(3):
        full.round(SGD)
    mean = torch.stack([m["control"] for m in full.client_states]).mean(0)
    assert np.allclose(full.state["control"], mean.numpy(), atol=1e-6)
    assert len(full.state["control"]) == full.flat.layout.trainable < len(full.state["floats"])
    # Also with partial participation, if clients that never took part count as zero.
    part = Federation(lambda _: Scaffold())
    part.round(SGD, cohort=(0, 2))
    part.round(SGD, cohort=(2,))
    mean = torch.stack([m.get("control", torch.zeros(part.flat.layout.trainable)) for m in part.client_states]).mean(0)
    assert np.allclose(part.state["control"], mean.numpy(), atol=1e-6)


def test_scaffold_corrects_a_clients_step_by_the_control_variates() -> None:
    scaffold = Federation(lambda _: Scaffold(), steps=(1, 1, 1))
    scaffold.round(SGD)
    down = scaffold.state
    update = scaffold.local(0, SGD)
    module = net()
    flat = FlatModel(module)
    flat.floats.copy_(torch.from_numpy(down["floats"]))
    objective(module)(batches(0, 1)[0]).backward()
    own = torch.cat([p.grad.reshape(-1) for p in module.parameters()])  # type: ignore[union-attr]
    before = Federation(lambda _: Scaffold(), steps=(1, 1, 1))
    before.round(SGD)
    control = before.client_states[0]["control"]
    expected = flat.trained - 0.1 * (own - control + torch.from_numpy(down["control"]))
    assert np.allclose(update.tensors["floats"], expected.detach().numpy(), atol=1e-6)


def test_fednova_with_equal_steps_is_fedavg() -> None:
    plain, nova = (Federation(m, norm=True) for m in (lambda _: FedAvg(), lambda f: FedNova(f.layout.trainable)))
    for _ in range(2):
        plain.round(SGD)
        nova.round(SGD)
    assert np.allclose(plain.state["floats"], nova.state["floats"], atol=1e-6)


def test_fednova_averages_normalized_directions() -> None:
    nova = Federation(lambda f: FedNova(f.layout.trainable), steps=(2, 3, 5))
    before = nova.state["floats"].astype(np.float64)
    updates = nova.round(SGD)
    p = np.array([2, 3, 5]) / 10
    traveled = np.array([2.0, 3.0, 5.0])
    directions = [(before - u.tensors["floats"]) / t for u, t in zip(updates, traveled, strict=True)]
    expected = before - (p @ traveled) * sum(w * d for w, d in zip(p, directions, strict=True))
    assert np.allclose(nova.state["floats"], expected, atol=1e-6)
    assert not np.allclose(nova.state["floats"], sum(w * u.tensors["floats"] for w, u in zip(p, updates, strict=True)))


@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"mu": 0.5}, {"momentum": 0.9, "mu": 0.5}], ids=str)
def test_fednova_clients_send_the_normalizer_of_their_own_steps(settings: dict[str, float]) -> None:
    sgd = Sgd(0.1, **settings)
    nova = Federation(lambda f: FedNova(f.layout.trainable), steps=(2, 3, 5))
    normalizers = [float(update.tensors["normalizer"][0]) for update in nova.round(sgd)]
    # With a constant gradient of -1 from w_r = 0, the distance is eta times A_k.
    for steps, found in zip((2, 3, 5), normalizers, strict=True):
        w = torch.zeros(1, requires_grad=True)
        optimizer = torch.optim.SGD([w], 0.1, momentum=sgd.momentum)
        for _ in range(steps):
            optimizer.zero_grad()
            (sgd.mu / 2 * w.square() - w).sum().backward()
            optimizer.step()
        assert found == pytest.approx(float(w.detach()) / 0.1, rel=1e-5)


def test_the_normalizer_has_the_published_values() -> None:
    assert normalizer(10, Sgd(0.1)) == 10
    assert normalizer(10, Sgd(0.1, momentum=0.9)) == pytest.approx(41.38105961, abs=1e-8)
    eta, mu = 0.1, 0.5
    assert normalizer(7, Sgd(eta, mu=mu)) == pytest.approx((1 - (1 - eta * mu) ** 7) / (eta * mu))
    assert normalizer(7, Sgd(eta, mu=1e-9)) == pytest.approx(7)
    assert normalizer(7, Sgd(eta, momentum=1e-12)) == pytest.approx(7)


def test_messages_hold_the_state_and_the_methods_extra_arrays() -> None:
    for method, extra in ((lambda _: FedAvg(), 0), (lambda f: FedNova(f.layout.trainable), 8)):
        fed = Federation(method, norm=True)
        (update, *_) = fed.round(SGD)
        assert sum(a.nbytes for a in update.tensors.values()) == fed.flat.layout.payload_bytes + extra
        assert sum(a.nbytes for a in fed.state.values()) == fed.flat.layout.payload_bytes
    scaffold = Federation(lambda _: Scaffold(), norm=True)
    (update, *_) = scaffold.round(SGD)
    p = scaffold.flat.layout.trainable
    for arrays in (update.tensors, scaffold.state):
        assert sum(a.nbytes for a in arrays.values()) == scaffold.flat.layout.payload_bytes + 4 * p
