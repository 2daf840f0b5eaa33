"""The methods FedAvg, FedProx, SCAFFOLD and FedNova, and the interface of federated methods.

A method defines what is sent to clients, how they train, what they return, and the server's next state. It does not
depend on the number of workers: replies become contributions, which are only ever added
(:mod:`~farshore.engines.federated.tree`). Control variates cover trained parameters only; every method averages
buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import ConfigError
from ...models.flat_params import FlatModel, host_array
from .array_pool import ArrayPool
from .client_state import ClientState
from .compute import LOSS_SCALE, batch_loss
from .local import LocalResult, Objective, SampleLosses, Sgd, normalizer, train
from .means import Means
from .tree import NamedArrays

Array = NDArray[Any]

FLOATS, INTEGERS, CONTROL, NORMALIZER, WEIGHT = "floats", "integers", "control", "normalizer", "weight"
VELOCITY, SPREAD = "velocity", "spread"


@dataclass(slots=True)
class Update:
    """A client's reply.

    Attributes
    ----------
    tensors : dict of arrays
        The arrays to send; ``floats`` and ``integers`` are the client's state after its round. The receiver owns them:
        after the update was added, their memory may be reused.
    samples : int
        The client's number of samples, ``n_k``.
    steps : int
    loss : float
        Mean over the client's steps.
    metrics : dict of float
        Further metrics of the training, means over the client's steps.
    """

    tensors: NamedArrays
    samples: int
    steps: int
    loss: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """A client's local work in a round.

    Attributes
    ----------
    objective : callable
        The loss of a batch on the resident model.
    batches : sequence
        The batches of all epochs.
    samples : int
        The client's number of samples.
    sgd : Sgd
    client_state : dict of tensors
        The client's state between rounds, on the CPU; changed in place.
    sample_losses : callable, optional
        The losses of a batch's samples, whose mean is ``objective``; allows training several clients as one batch
        (:mod:`~farshore.engines.federated.batched`).
    means : Means, optional
        Scalars that the objective records at every step; their means are sent with the update.
    full_batches : sequence of (share, batch)
        Batches that contain each of the client's samples once, with their shares of all samples; for methods that
        use the full-batch gradient (:class:`Scaffold`, option 1).
    full_gradient : torch.Tensor, optional
        (trainable,), the full-batch gradient on the CPU, set by methods that compute it.
    """

    objective: Objective
    batches: Sequence[Any]
    samples: int
    sgd: Sgd
    client_state: ClientState = field(default_factory=dict)
    sample_losses: SampleLosses | None = None
    means: Means | None = None
    full_batches: Sequence[tuple[float, Any]] = ()
    full_gradient: torch.Tensor | None = None


class FederatedMethod(Protocol):
    """A federated method; see docs/own-method.md."""

    def start(self, flat: FlatModel) -> NamedArrays:
        """Return the server's state before round 1."""

    def sent(self, state: NamedArrays) -> NamedArrays:
        """Return the part of the server's state that is sent to clients in every round."""

    def local(self, flat: FlatModel, down: NamedArrays, work: Work) -> Update:
        """Run a client's round from the received state ``down``; ``flat`` is overwritten."""

    def client_state_sizes(self, flat: FlatModel) -> dict[str, int]:
        """Return names and lengths of the float32 tensors that a client keeps between rounds."""

    def reply(self, down: NamedArrays) -> NamedArrays:
        """Return arrays with the names, shapes and dtypes that every update must have; their values are ignored."""

    def contribution(self, down: NamedArrays, update: Update) -> NamedArrays:
        """Return a client's update as a summand."""

    def divergence(self, down: NamedArrays, total: NamedArrays) -> float | None:
        """Return how far the clients of a round diverged, from the sum over the cohort; None if not requested."""

    def finish(self, state: NamedArrays, total: NamedArrays, population: int) -> NamedArrays:
        """Return the server's next state from the sum over the cohort; ``population`` is the number of all clients."""


#: Capabilities of :class:`FedAvg` that a subclass loses when it overrides one of these members, unless it declares the
#: capability itself.
_CAPABILITIES: Mapping[str, frozenset[str]] = {
    "contribution_scales": frozenset({"contribution", "summand"}),
    "trains_in_batches": frozenset({"local"}),
    "can_lend_state": frozenset({"local", "update", "contribution", "summand"}),
}


class FedAvg:
    """Weighted mean of client states (McMahan 2017); FedProx if the clients' ``sgd.mu`` is positive (Li 2020).

    Parameters
    ----------
    keeps_momentum : bool
        Clients keep their momentum between rounds instead of starting at zero.
    """

    keeps_momentum = False  # default for subclasses that do not call this constructor

    #: Number of leading parameters of the state whose divergence is reported; 0 = not reported.
    divergence_size = 0

    #: Capability: each array of a contribution is the update's array of that name times a factor of at least 1, and so
    #: finite only if the update is: one pass checks both.
    contribution_scales = True

    #: Capability: local training is :meth:`local` as it is here, so that several clients can be trained as one batch.
    trains_in_batches = True

    #: Capability: nothing keeps an update's arrays once its contribution is computed, so that they need not be copies.
    can_lend_state = True

    #: Whether updates hold views of the resident model instead of copies: valid until the model is used again.
    lends_state = False

    #: Pool for the memory of updates and summands; None = new memory.
    array_pool: ArrayPool | None = None

    def __init__(self, *, keeps_momentum: bool = False) -> None:
        self.keeps_momentum = keeps_momentum

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for capability, members in _CAPABILITIES.items():
            if capability not in vars(cls) and not members.isdisjoint(vars(cls)):
                setattr(cls, capability, False)

    def start(self, flat: FlatModel) -> NamedArrays:
        return {FLOATS: host_array(flat.floats).copy(), INTEGERS: host_array(flat.integers).copy()}

    def sent(self, state: NamedArrays) -> NamedArrays:
        return state

    def local(self, flat: FlatModel, down: NamedArrays, work: Work) -> Update:
        flat.load(down[FLOATS], down[INTEGERS])
        correction, kept = self.correction(flat, down, work), self.velocity(flat, work)
        correction = None if correction is None else correction.to(flat.device)
        velocity = None if kept is None else kept.to(flat.device)
        result = train(flat, work.objective, work.batches, work.sgd, correction=correction, velocity=velocity)
        if kept is not None and velocity is not None and velocity is not kept:
            kept.copy_(velocity)
        floats, integers = host_array(flat.floats), host_array(flat.integers)
        if not self.lends_state:
            floats, integers = self.copy_array(floats), self.copy_array(integers)
        return self.update(down, work, floats, integers, result)

    def copy_array(self, array: Array) -> Array:
        """Copy an array for an update."""
        return array.copy() if self.array_pool is None else self.array_pool.copy(array)

    def correction(self, flat: FlatModel, down: NamedArrays, work: Work) -> torch.Tensor | None:
        """Return (trainable,), a term added to every step's direction, on the CPU.

        ``flat`` holds the state ``down``, unchanged.
        """
        return None

    def velocity(self, flat: FlatModel, work: Work) -> torch.Tensor | None:
        """(trainable,), the client's momentum on the CPU, to be changed in place; None = it starts at zero."""
        if not self.keeps_momentum:
            return None
        return work.client_state.setdefault(VELOCITY, torch.zeros(flat.layout.trainable))

    def update(self, down: NamedArrays, work: Work, floats: Array, integers: Array, result: LocalResult) -> Update:
        """Create the update of a client that trained from ``down`` to the state ``floats``, ``integers``."""
        metrics = work.means.compute() if work.means is not None else {}
        loss = result.loss / max(1, result.steps)
        return Update({FLOATS: floats, INTEGERS: integers}, work.samples, result.steps, loss, metrics)

    def client_state_sizes(self, flat: FlatModel) -> dict[str, int]:
        return {VELOCITY: flat.layout.trainable} if self.keeps_momentum else {}

    def reply(self, down: NamedArrays) -> NamedArrays:
        return {name: down[name] for name in (FLOATS, INTEGERS)}

    def contribution(self, down: NamedArrays, update: Update) -> NamedArrays:
        return self.summand(update.tensors, update.samples, down)

    def summand(self, tensors: NamedArrays, weight: int, down: NamedArrays | None) -> NamedArrays:
        """Return ``tensors`` times ``weight``, with the squared distance from ``down`` (None: 0) if it is reported."""
        part = _weighted(tensors, weight, self.array_pool)
        if self.divergence_size:
            part[SPREAD] = np.array([weight * _squared(tensors[FLOATS], down, self.divergence_size)])
        return part

    def divergence(self, down: NamedArrays, total: NamedArrays) -> float | None:
        """Return the root of the weighted mean of ``|w_k - w_mean|²`` over the trained parameters.

        It is at least the mean distance that FedImpro reports (Tang 2024), and equal to it if all clients are equally
        far. Unlike the latter, it follows from sums over the cohort: ``Σ p|d|² - |Σ p d|²`` with ``d = w_k - w_r``.
        """
        return self.spread(total, down)

    def spread(self, total: NamedArrays, down: NamedArrays | None) -> float | None:
        """Return the :meth:`divergence` of the arrays that :meth:`summand` received."""
        if not self.divergence_size or SPREAD not in total:
            return None
        weight = float(total[WEIGHT][0])
        mean = total[FLOATS][: self.divergence_size] / weight
        variance = float(total[SPREAD][0]) / weight - _squared(mean, down, self.divergence_size)
        return float(np.sqrt(np.maximum(0.0, variance)))

    def finish(self, state: NamedArrays, total: NamedArrays, population: int) -> NamedArrays:
        return _mean(total)


class Scaffold(FedAvg):
    """SCAFFOLD: control variates that correct client drift (Karimireddy 2020, algorithm 1); clients weigh equally.

    Parameters
    ----------
    server_lr : float
        The server's learning rate ``eta_g``.
    option : {1, 2}
        A client's next control variate is 1: the full-batch gradient (``Work.full_batches``) at the round's state; 2:
        ``c_k - c + (w_r - y) / (A_k eta)`` from its steps, with :func:`~.local.normalizer`'s ``A_k``, which is the
        paper's ``T`` without momentum.
    keeps_momentum : bool
        See :class:`FedAvg`.

    Notes
    -----
    Corrections are added after momentum, so a round has ``T`` corrections but ``A_k`` gradients. Option 2 compensates
    for it: its ``c_k - c`` converge to values for which ``T (c - c_k)`` cancels ``A_k`` times the drift. Option 1 does
    not, and is meant for plain SGD.
    """

    contribution_scales = True  # its contribution is FedAvg's with another weight

    def __init__(self, server_lr: float = 1.0, *, option: Literal[1, 2] = 2, keeps_momentum: bool = False) -> None:
        super().__init__(keeps_momentum=keeps_momentum)
        self.server_lr, self.option = server_lr, option

    def start(self, flat: FlatModel) -> NamedArrays:
        return {**super().start(flat), CONTROL: np.zeros(flat.layout.trainable, np.float32)}

    def correction(self, flat: FlatModel, down: NamedArrays, work: Work) -> torch.Tensor:
        server = torch.tensor(down[CONTROL])
        if self.option == 1:
            work.full_gradient = gradient_of_all(flat, work)
            flat.load(down[FLOATS], down[INTEGERS])  # batch norm statistics have changed
        return server - work.client_state.setdefault(CONTROL, torch.zeros_like(server))

    def update(self, down: NamedArrays, work: Work, floats: Array, integers: Array, result: LocalResult) -> Update:
        update = super().update(down, work, floats, integers, result)
        server, p = torch.tensor(down[CONTROL]), len(down[CONTROL])
        if work.full_gradient is not None:
            change = work.full_gradient - work.client_state[CONTROL]
        else:
            before, after = torch.tensor(down[FLOATS][:p]), torch.from_numpy(floats[:p])
            # With momentum, a gradient moves the weights further: A_k instead of T.
            traveled = normalizer(update.steps, Sgd(work.sgd.lr, work.sgd.momentum)) * work.sgd.lr
            change = (before - after) / traveled - server
        work.client_state[CONTROL] += change
        update.tensors[CONTROL] = change.numpy()
        return update

    def client_state_sizes(self, flat: FlatModel) -> dict[str, int]:
        return {**super().client_state_sizes(flat), CONTROL: flat.layout.trainable}

    def reply(self, down: NamedArrays) -> NamedArrays:
        return down

    def contribution(self, down: NamedArrays, update: Update) -> NamedArrays:
        return self.summand(update.tensors, 1, down)

    def finish(self, state: NamedArrays, total: NamedArrays, population: int) -> NamedArrays:
        p, clients = len(state[CONTROL]), float(total[WEIGHT][0])
        mean = _mean(total)
        moved = mean[FLOATS][:p] - state[FLOATS][:p]
        mean[FLOATS][:p] = state[FLOATS][:p] + np.float32(self.server_lr) * moved
        mean[CONTROL] = state[CONTROL] + mean[CONTROL] * np.float32(clients / population)
        return mean


class FedNova(FedAvg):
    """FedNova: updates normalized by the length of their steps, so that longer rounds do not weigh more (Wang 2020).

    Parameters
    ----------
    trainable : int
        Number of trained parameters.
    keeps_momentum : bool
        See :class:`FedAvg`.
    """

    def __init__(self, trainable: int, *, keeps_momentum: bool = False) -> None:
        super().__init__(keeps_momentum=keeps_momentum)
        self._trainable = trainable

    def update(self, down: NamedArrays, work: Work, floats: Array, integers: Array, result: LocalResult) -> Update:
        update = super().update(down, work, floats, integers, result)
        update.tensors[NORMALIZER] = np.array([normalizer(update.steps, work.sgd)])
        return update

    def reply(self, down: NamedArrays) -> NamedArrays:
        return {**super().reply(down), NORMALIZER: np.ones(1)}

    def contribution(self, down: NamedArrays, update: Update) -> NamedArrays:
        p, traveled = self._trainable, float(update.tensors[NORMALIZER][0])
        floats = update.tensors[FLOATS].copy()
        floats[:p] = (down[FLOATS][:p] - floats[:p]) / np.float32(traveled)
        return self.summand({**update.tensors, FLOATS: floats}, update.samples, None)

    def divergence(self, down: NamedArrays, total: NamedArrays) -> float | None:
        """Return FedAvg's divergence of the summed arrays: normalized updates times the mean number of steps."""
        spread = self.spread(total, None)
        return None if spread is None else spread * float(total[NORMALIZER][0]) / float(total[WEIGHT][0])

    def finish(self, state: NamedArrays, total: NamedArrays, population: int) -> NamedArrays:
        mean = _mean(total)
        traveled = np.float32(mean.pop(NORMALIZER)[0])
        p = self._trainable
        mean[FLOATS][:p] = state[FLOATS][:p] - traveled * mean[FLOATS][:p]
        return mean


def gradient_of_all(flat: FlatModel, work: Work) -> torch.Tensor:
    """Return (trainable,) on the CPU, the gradient of the mean loss of a client's data, with its steps' weight decay.

    Raises
    ------
    ConfigError
        The task does not provide ``Work.full_batches``.
    """
    if not work.full_batches:
        raise ConfigError(
            "SCAFFOLD's option 1 needs the full-batch gradient, but the task does not provide Work.full_batches",
            hint="use option 2",
        )
    flat.clear_gradients()
    scale = LOSS_SCALE if flat.precision == "fp16" else 1.0
    for share, batch in work.full_batches:
        (share * scale * batch_loss(flat, work.objective, batch)).backward()  # type: ignore[no-untyped-call]
    if work.means is not None:
        work.means.clear()  # only training steps are reported
    empty = torch.empty(0, device=flat.device)
    gradient = torch.cat([empty, *(piece.reshape(-1) for piece in flat.gradients())]) / scale
    flat.clear_gradients()
    return torch.from_numpy(host_array(gradient + work.sgd.weight_decay * flat.trained))


def _weighted(tensors: NamedArrays, weight: int, pool: ArrayPool | None) -> NamedArrays:
    """Arrays times ``weight``, integers as float64, with the weight itself for the mean."""
    part: NamedArrays = {}
    for name, array in tensors.items():
        kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
        out = None if pool is None else pool.take_named(name, array.shape, kind)
        part[name] = np.multiply(array, kind.type(weight), out=out, dtype=kind)
    part[WEIGHT] = np.array([float(weight)])
    return part


def _mean(total: NamedArrays) -> NamedArrays:
    """Sums divided by the sum of weights, in each array's own dtype; integers are rounded."""
    weight = float(total[WEIGHT][0])
    mean: NamedArrays = {n: a / a.dtype.type(weight) for n, a in total.items() if n not in (WEIGHT, SPREAD)}
    mean[INTEGERS] = np.rint(mean[INTEGERS]).astype(np.int64)
    return mean


def _squared(floats: Array, down: NamedArrays | None, count: int) -> float:
    """``|x|²`` of the first ``count`` values minus those of ``down``; without BLAS, whose threads change last bits."""
    difference = floats[:count] if down is None else np.subtract(floats[:count], down[FLOATS][:count], dtype=np.float64)
    return float(np.add.reduce(np.square(difference, dtype=np.float64)))
