"""FedAvg and FedProx, and the interface of federated methods; others are in ``drift_correction.py``.

A method defines what is sent to clients, how they train, what they return, and the server's next state. It does not
depend on the number of workers: replies become contributions, which are only ever added
(:mod:`~farshore.engines.federated.tree`). Control variates cover trained parameters only; every method averages
buffers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...models.flat_params import FlatModel, host_array
from .array_pool import ArrayPool
from .client_state import ClientState
from .local import LocalResult, Objective, SampleLosses, Sgd, train
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
        use the full-batch gradient (:class:`~.drift_correction.Scaffold`, option 1).
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
        return weighted_mean(total)


def _weighted(tensors: NamedArrays, weight: int, pool: ArrayPool | None) -> NamedArrays:
    """Arrays times ``weight``, integers as float64, with the weight itself for the mean."""
    part: NamedArrays = {}
    for name, array in tensors.items():
        kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
        out = None if pool is None else pool.take_named(name, array.shape, kind)
        part[name] = np.multiply(array, kind.type(weight), out=out, dtype=kind)
    part[WEIGHT] = np.array([float(weight)])
    return part


def weighted_mean(total: NamedArrays) -> NamedArrays:
    """Sums divided by the sum of weights, in each array's own dtype; integers are rounded."""
    weight = float(total[WEIGHT][0])
    mean: NamedArrays = {n: a / a.dtype.type(weight) for n, a in total.items() if n not in (WEIGHT, SPREAD)}
    mean[INTEGERS] = np.rint(mean[INTEGERS]).astype(np.int64)
    return mean


def _squared(floats: Array, down: NamedArrays | None, count: int) -> float:
    """``|x|²`` of the first ``count`` values minus those of ``down``; without BLAS, whose threads change last bits."""
    difference = floats[:count] if down is None else np.subtract(floats[:count], down[FLOATS][:count], dtype=np.float64)
    return float(np.add.reduce(np.square(difference, dtype=np.float64)))
