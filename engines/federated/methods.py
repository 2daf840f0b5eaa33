"""FedAvg, FedProx, SCAFFOLD and FedNova, each as what goes down, what comes up, and what the server makes of the sum.

A method never sees how many workers there are: replies are turned into contributions that only ever get added
(:mod:`~farshore.engines.federated.tree`). Control variates cover trained parameters only, buffers are averaged by
every method (specification of VHL, section 3.4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from ...core.errors import ConfigError
from ...models.flat_params import FlatModel
from .array_pool import ArrayPool
from .local import EachLoss, LocalResult, Objective, Sgd, normalizer, train
from .means import Means
from .tree import Part

Array = NDArray[Any]

FLOATS, INTEGERS, CONTROL, NORMALIZER, WEIGHT = "floats", "integers", "control", "normalizer", "weight"
VELOCITY, SPREAD = "velocity", "spread"


@dataclass(slots=True)
class Update:
    """A client's reply.

    Attributes
    ----------
    tensors : dict of arrays
        What crosses the wire; ``floats`` and ``integers`` are the client's state after its round. They are handed over:
        once the update was added, their memory may hold another client's.
    samples : int
        ``n_k``.
    steps : int
    loss : float
        Mean over its steps.
    figures : dict of float
        What else it tells of its training, means over its steps.
    """

    tensors: Part
    samples: int
    steps: int
    loss: float
    figures: dict[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Work:
    """A client's part in a round.

    Attributes
    ----------
    objective : callable
        The loss of a batch on the resident model.
    batches : sequence
        All of its batches, every epoch's.
    samples : int
    sgd : Sgd
    memory : dict of tensors
        What this client keeps from round to round; changed in place.
    each : callable, optional
        The losses of a batch's samples, whose mean is ``objective``; with it, several clients can be trained at once
        (:mod:`~farshore.engines.federated.batched`).
    means : Means, optional
        What the objective tells of every step; its means go up with the update.
    whole : sequence of (share, batch)
        Batches that hold each of the client's samples once, with their shares of these; for methods that want the
        gradient of all of them (:class:`Scaffold`, option 1).
    gradient : torch.Tensor, optional
        (trainable,), that gradient, once a method has worked it out.
    """

    objective: Objective
    batches: Sequence[Any]
    samples: int
    sgd: Sgd
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    each: EachLoss | None = None
    means: Means | None = None
    whole: Sequence[tuple[float, Any]] = ()
    gradient: torch.Tensor | None = None


class FederatedMethod(Protocol):
    """A federated method."""

    def start(self, flat: FlatModel) -> Part:
        """The server's state before round 1."""

    def sent(self, state: Part) -> Part:
        """What of the server's state goes down in every round: all but what only the server needs."""

    def local(self, flat: FlatModel, down: Part, work: Work) -> Update:
        """A client's round; ``flat`` is overwritten."""

    def remembers(self, flat: FlatModel) -> dict[str, int]:
        """Names and lengths of the float32 tensors that a client keeps from round to round."""

    def reply(self, down: Part) -> Part:
        """Arrays of the names, shapes and types that every update must have; their values mean nothing."""

    def contribution(self, down: Part, update: Update) -> Part:
        """A reply as a summand."""

    def divergence(self, down: Part, total: Part) -> float | None:
        """How far apart the clients of a round went, from the sum over the cohort; None where it is not asked for."""

    def finish(self, state: Part, total: Part, population: int) -> Part:
        """The server's next state from the sum over the cohort; ``population`` is how many clients there are."""


class FedAvg:
    """Weighted mean of states (McMahan 2017); FedProx when the clients' ``sgd.mu`` is positive (Li 2020).

    Parameters
    ----------
    keeps_momentum : bool
        A client's momentum goes on where its last round ended, rather than to start from rest.
    """

    keeps_momentum = False  # for methods of one's own that do not care

    #: Trained parameters whose divergence is told, the first of the state; 0 = none is.
    measured = 0

    #: Where the memory of updates and summands comes from; None: it is new.
    spare: ArrayPool | None = None

    def __init__(self, *, keeps_momentum: bool = False) -> None:
        self.keeps_momentum = keeps_momentum

    def start(self, flat: FlatModel) -> Part:
        return {FLOATS: flat.floats.numpy().copy(), INTEGERS: flat.integers.numpy().copy()}

    def sent(self, state: Part) -> Part:
        return state

    def local(self, flat: FlatModel, down: Part, work: Work) -> Update:
        flat.load(down[FLOATS], down[INTEGERS])
        correction, velocity = self.correction(flat, down, work), self.velocity(flat, work)
        done = train(flat, work.objective, work.batches, work.sgd, correction=correction, velocity=velocity)
        return self.update(down, work, self.copied(flat.floats.numpy()), self.copied(flat.integers.numpy()), done)

    def copied(self, array: Array) -> Array:
        """A copy for an update."""
        return array.copy() if self.spare is None else self.spare.copied(array)

    def correction(self, flat: FlatModel, down: Part, work: Work) -> torch.Tensor | None:
        """(trainable,), what is added to every step's direction; ``flat`` holds the state ``down``, and does after."""
        return None

    def velocity(self, flat: FlatModel, work: Work) -> torch.Tensor | None:
        """(trainable,), the momentum that the client kept, to be changed in place; None: it starts from rest."""
        return work.memory.setdefault(VELOCITY, torch.zeros(flat.layout.trainable)) if self.keeps_momentum else None

    def update(self, down: Part, work: Work, floats: Array, integers: Array, done: LocalResult) -> Update:
        """The reply of a client that has come from ``down`` to the state ``floats``, ``integers``."""
        figures = work.means.told() if work.means is not None else {}
        loss = done.loss / max(1, done.steps)
        return Update({FLOATS: floats, INTEGERS: integers}, work.samples, done.steps, loss, figures)

    def remembers(self, flat: FlatModel) -> dict[str, int]:
        return {VELOCITY: flat.layout.trainable} if self.keeps_momentum else {}

    def reply(self, down: Part) -> Part:
        return {name: down[name] for name in (FLOATS, INTEGERS)}

    def contribution(self, down: Part, update: Update) -> Part:
        return self.summand(update.tensors, update.samples, down)

    def summand(self, tensors: Part, weight: int, down: Part | None) -> Part:
        """``tensors`` times ``weight``; with how far the client went from ``down`` (None: 0) where that is told."""
        part = _weighted(tensors, weight, self.spare)
        if self.measured:
            part[SPREAD] = np.array([weight * _squared(tensors[FLOATS], down, self.measured)])
        return part

    def divergence(self, down: Part, total: Part) -> float | None:
        """Root of the weighted mean of ``|w_k - w_mean|²`` over the trained parameters.

        At least the mean distance that FedImpro reports (Tang 2024), and equal to it where all clients are equally far.
        Unlike that one it follows from sums over the cohort, ``Σ p|d|² - |Σ p d|²`` with ``d = w_k - w_r``.
        """
        return self.spread(total, down)

    def spread(self, total: Part, down: Part | None) -> float | None:
        """As :meth:`divergence`, of what :meth:`summand` was given."""
        if not self.measured or SPREAD not in total:
            return None
        weight = float(total[WEIGHT][0])
        mean = total[FLOATS][: self.measured] / weight
        apart = float(total[SPREAD][0]) / weight - _squared(mean, down, self.measured)
        return float(np.sqrt(np.maximum(0.0, apart)))

    def finish(self, state: Part, total: Part, population: int) -> Part:
        return _mean(total)


class Scaffold(FedAvg):
    """Control variates against drift (Karimireddy 2020, algorithm 1); clients weigh alike.

    Parameters
    ----------
    server_lr : float
        ``eta_g``.
    option : {1, 2}
        A client's next control variate is 1: the gradient of all of its data (``Work.whole``) at the round's state; 2:
        what its steps tell, ``c_k - c + (w_r - y) / (A_k eta)``, with :func:`~.local.normalizer`'s ``A_k``, which is
        the paper's ``T`` unless there is momentum.

    Notes
    -----
    Corrections come after momentum, so that ``T`` of them stand against ``A_k`` gradients. Option 2 makes up for it:
    its ``c_k - c`` settle where ``T (c - c_k)`` undoes ``A_k`` times the drift. Option 1 does not: it is for plain SGD.
    """

    def __init__(self, server_lr: float = 1.0, *, option: Literal[1, 2] = 2, keeps_momentum: bool = False) -> None:
        super().__init__(keeps_momentum=keeps_momentum)
        self.server_lr, self.option = server_lr, option

    def start(self, flat: FlatModel) -> Part:
        return {**super().start(flat), CONTROL: np.zeros(flat.layout.trainable, np.float32)}

    def correction(self, flat: FlatModel, down: Part, work: Work) -> torch.Tensor:
        server = torch.tensor(down[CONTROL])
        if self.option == 1:
            work.gradient = gradient_of_all(flat, work)
            flat.load(down[FLOATS], down[INTEGERS])  # batch norms have counted
        return server - work.memory.setdefault(CONTROL, torch.zeros_like(server))

    def update(self, down: Part, work: Work, floats: Array, integers: Array, done: LocalResult) -> Update:
        update = super().update(down, work, floats, integers, done)
        server, p = torch.tensor(down[CONTROL]), len(down[CONTROL])
        if work.gradient is not None:
            change = work.gradient - work.memory[CONTROL]
        else:
            before, after = torch.tensor(down[FLOATS][:p]), torch.from_numpy(floats[:p])
            # With momentum a step's worth of gradient travels further: A_k instead of T.
            traveled = normalizer(update.steps, Sgd(work.sgd.lr, work.sgd.momentum)) * work.sgd.lr
            change = (before - after) / traveled - server
        work.memory[CONTROL] += change
        update.tensors[CONTROL] = change.numpy()
        return update

    def remembers(self, flat: FlatModel) -> dict[str, int]:
        return {**super().remembers(flat), CONTROL: flat.layout.trainable}

    def reply(self, down: Part) -> Part:
        return down

    def contribution(self, down: Part, update: Update) -> Part:
        return self.summand(update.tensors, 1, down)

    def finish(self, state: Part, total: Part, population: int) -> Part:
        p, clients = len(state[CONTROL]), float(total[WEIGHT][0])
        mean = _mean(total)
        moved = mean[FLOATS][:p] - state[FLOATS][:p]
        mean[FLOATS][:p] = state[FLOATS][:p] + np.float32(self.server_lr) * moved
        mean[CONTROL] = state[CONTROL] + mean[CONTROL] * np.float32(clients / population)
        return mean


class FedNova(FedAvg):
    """Updates are normalized by how far their steps could go, so that long rounds do not weigh more (Wang 2020)."""

    def __init__(self, trainable: int, *, keeps_momentum: bool = False) -> None:
        super().__init__(keeps_momentum=keeps_momentum)
        self._trainable = trainable

    def update(self, down: Part, work: Work, floats: Array, integers: Array, done: LocalResult) -> Update:
        update = super().update(down, work, floats, integers, done)
        update.tensors[NORMALIZER] = np.array([normalizer(update.steps, work.sgd)])
        return update

    def reply(self, down: Part) -> Part:
        return {**super().reply(down), NORMALIZER: np.ones(1)}

    def contribution(self, down: Part, update: Update) -> Part:
        p, traveled = self._trainable, float(update.tensors[NORMALIZER][0])
        floats = update.tensors[FLOATS].copy()
        floats[:p] = (down[FLOATS][:p] - floats[:p]) / np.float32(traveled)
        return self.summand({**update.tensors, FLOATS: floats}, update.samples, None)

    def divergence(self, down: Part, total: Part) -> float | None:
        """As FedAvg's, of the clients' normalized ways times the mean number of steps: what the server adds up."""
        spread = self.spread(total, None)
        return None if spread is None else spread * float(total[NORMALIZER][0]) / float(total[WEIGHT][0])

    def finish(self, state: Part, total: Part, population: int) -> Part:
        mean = _mean(total)
        traveled = np.float32(mean.pop(NORMALIZER)[0])
        p = self._trainable
        mean[FLOATS][:p] = state[FLOATS][:p] - traveled * mean[FLOATS][:p]
        return mean


def gradient_of_all(flat: FlatModel, work: Work) -> torch.Tensor:
    """(trainable,), gradient of the mean loss of a client's whole data, weight decay included as in its steps.

    Raises
    ------
    ConfigError
        The task gives no such batches.
    """
    if not work.whole:
        raise ConfigError(
            "the task does not give a client's whole data (Work.whole), whose gradient SCAFFOLD's option 1 is",
            hint="use option 2",
        )
    flat.clear_gradients()
    for share, batch in work.whole:
        (share * work.objective(batch)).backward()  # type: ignore[no-untyped-call]
    if work.means is not None:
        work.means.clear()  # they are of the training's steps
    gradient = torch.cat([torch.empty(0), *(piece.reshape(-1) for piece in flat.gradients())])
    flat.clear_gradients()
    return gradient + work.sgd.weight_decay * flat.trained


def _weighted(tensors: Part, weight: int, spare: ArrayPool | None) -> Part:
    """Times ``weight``, integers as float64; with the weight itself, for the mean."""
    part: Part = {}
    for name, array in tensors.items():
        kind = array.dtype if array.dtype.kind == "f" else np.dtype(np.float64)
        out = None if spare is None else spare.summand(name, array.shape, kind)
        part[name] = np.multiply(array, kind.type(weight), out=out, dtype=kind)
    part[WEIGHT] = np.array([float(weight)])
    return part


def _mean(total: Part) -> Part:
    """Sums over the weight's sum, in each array's own type; integers rounded."""
    weight = float(total[WEIGHT][0])
    mean: Part = {n: a / a.dtype.type(weight) for n, a in total.items() if n not in (WEIGHT, SPREAD)}
    mean[INTEGERS] = np.rint(mean[INTEGERS]).astype(np.int64)
    return mean


def _squared(floats: Array, down: Part | None, count: int) -> float:
    """``|x|²`` of the first ``count`` numbers, less those of ``down``; not by BLAS, whose threads change last bits."""
    way = floats[:count] if down is None else np.subtract(floats[:count], down[FLOATS][:count], dtype=np.float64)
    return float(np.add.reduce(np.square(way, dtype=np.float64)))
