"""Local training of a client: SGD on a flat model, with momentum, proximal term and drift correction.

A step is a few calls of torch's ``_foreach`` operations, each of which processes all layers at once. Gradients are used
without accumulating them in a zeroed buffer, which would read and write a large model twice more. Momentum and weight
decay are defined as in ``torch.optim.SGD``, which gives the same numbers on the module.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from ...models.devices import gradient_scaler
from ...models.flat_params import FlatModel
from ...models.torch_internals import add_each, added_each, scale_each, subtracted_each
from .compute import LOSS_SCALE, batch_loss

#: One tensor per layer, or one for a stack of clients.
Tensors: TypeAlias = list[torch.Tensor]

#: ``objective(batch)``: the differentiable scalar loss of a batch.
Objective = Callable[[Any], torch.Tensor]

#: ``sample_losses(model, batch)``: the losses (B,) of a batch's samples, whose mean is the objective; ``model`` is
#: called like the module, and ``batch`` is a tuple of tensors (B, …).
SampleLosses = Callable[[Callable[..., Any], Any], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sgd:
    """A client's optimizer.

    Attributes
    ----------
    lr, momentum, weight_decay : float
        As in ``torch.optim.SGD``; no Nesterov, no dampening.
    mu : float
        Factor of FedProx's proximal term ``mu/2 · |w - w_r|²`` over the trained parameters (McMahan 2017; Li 2020).
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    mu: float = 0.0


@dataclass(slots=True)
class LocalResult:
    """Result of :func:`train`: number of steps that were taken, and sum of their batch losses."""

    steps: int = 0
    loss: float = 0.0


def train(
    flat: FlatModel,
    objective: Objective,
    batches: Iterable[Any],
    sgd: Sgd,
    *,
    correction: torch.Tensor | None = None,
    velocity: torch.Tensor | None = None,
) -> LocalResult:
    """Train the flat model in place, on its device and in its precision.

    ``fp16`` losses are scaled; a step whose gradient overflows is skipped, and the scale is halved. The scale starts
    anew in every call, so that a client's result does not depend on the clients before it.

    Parameters
    ----------
    flat : FlatModel
        Holds the round's state; its initial parameters are the ``w_r`` of the proximal term.
    objective : callable
    batches : iterable
    sgd : Sgd
    correction : torch.Tensor, optional
        (trainable,), added to every step's direction after momentum: SCAFFOLD's ``c - c_k``.
    velocity : torch.Tensor, optional
        (trainable,), momentum from the client's last round; changed in place. None = it starts at zero.
    """
    start = flat.trained.clone() if sgd.mu else None
    momentum = velocity if velocity is not None else torch.zeros_like(flat.trained) if sgd.momentum else None
    optimizer = _FlatOptimizer(flat, sgd, start, momentum, correction)
    losses = []
    for batch in batches:
        flat.clear_gradients()
        loss = batch_loss(flat, objective, batch)
        if optimizer.minimize(loss):
            losses.append(loss.detach())
    flat.clear_gradients()
    return LocalResult(len(losses), _sum(losses))


class _FlatOptimizer:
    """Steps of a flat model; has the members that a gradient scaler needs of an optimizer."""

    def __init__(
        self,
        flat: FlatModel,
        sgd: Sgd,
        start: torch.Tensor | None,
        momentum: torch.Tensor | None,
        correction: torch.Tensor | None,
    ) -> None:
        self._flat, self._sgd = flat, sgd
        self._terms = [None if vector is None else flat.unflatten(vector) for vector in (start, momentum, correction)]
        scaled = flat.precision == "fp16"
        self._scaler: Any = gradient_scaler(flat.device, "fp16", LOSS_SCALE) if scaled else None
        self.param_groups = [{"params": flat.parameters}]
        self._stepped = False

    def minimize(self, loss: torch.Tensor) -> bool:
        """Compute the gradient and take a step; False if the gradient overflowed."""
        if self._scaler is None:
            loss.backward()  # type: ignore[no-untyped-call]
            self.step()
            return True
        self._stepped = False
        self._scaler.scale(loss).backward()
        self._scaler.step(self)
        self._scaler.update()
        return self._stepped

    @torch.no_grad()
    def step(self) -> None:
        """Take a step with the parameters' gradients."""
        step(self._flat.parameters, self._flat.gradients(), self._sgd, *self._terms)
        self._stepped = True


def _sum(losses: list[torch.Tensor]) -> float:
    """Sum in double precision and order of the steps; one transfer from the device."""
    total = 0.0
    for loss in torch.stack(losses).tolist() if losses else ():
        total += loss
    return total


def step(
    weights: Tensors,
    direction: Tensors,
    sgd: Sgd,
    start: Tensors | None,
    momentum: Tensors | None,
    correction: Tensors | None,
) -> None:
    """Apply one SGD step in place to tensors of any shapes, the same in all lists.

    Parameters
    ----------
    weights : list of torch.Tensor
    direction : list of torch.Tensor
        The gradients; overwritten.
    sgd : Sgd
    start : list of torch.Tensor, optional
        The proximal term's ``w_r``.
    momentum : list of torch.Tensor, optional
        Changed in place.
    correction : list of torch.Tensor, optional
        Added to the direction after momentum.
    """
    if sgd.weight_decay:
        add_each(direction, weights, alpha=sgd.weight_decay)
    if start is not None:
        add_each(direction, subtracted_each(weights, start), alpha=sgd.mu)
    if momentum is not None:
        scale_each(momentum, sgd.momentum)
        add_each(momentum, direction)
        direction = momentum
    if correction is not None:
        direction = added_each(direction, correction)
    add_each(weights, direction, alpha=-sgd.lr)


def normalizer(steps: int, sgd: Sgd) -> float:
    """Return FedNova's normalizer ``A_k``: the distance of ``steps`` steps on a constant gradient (Wang 2020).

    In units of a plain SGD step: ``T`` for plain SGD, ``[T - ρ(1-ρ^T)/(1-ρ)]/(1-ρ)`` with momentum and
    ``(1-(1-ημ)^T)/(ημ)`` with a proximal term; weight decay is ignored. The recursion also covers both at once.
    """
    if not sgd.momentum and not sgd.mu:
        return float(steps)
    shrink = sgd.lr * sgd.mu
    traveled = speed = 0.0
    for _ in range(steps):
        speed = sgd.momentum * speed + 1.0 - shrink * traveled
        traveled += speed
    return traveled
