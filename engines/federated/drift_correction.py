"""Methods that correct or normalize what clients of unequal data and steps contribute: SCAFFOLD and FedNova."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from ...core.errors import ConfigError
from ...models.flat_params import FlatModel, host_array
from .compute import LOSS_SCALE, batch_loss
from .local import LocalResult, Sgd, normalizer
from .methods import CONTROL, FLOATS, INTEGERS, NORMALIZER, WEIGHT, Array, FedAvg, Update, Work, weighted_mean
from .tree import NamedArrays


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
        mean = weighted_mean(total)
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
        mean = weighted_mean(total)
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
