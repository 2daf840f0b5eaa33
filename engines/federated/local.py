"""What a client does in a round: some epochs of SGD on a flat model, from the state that the server sent.

A step is a few calls of torch's ``_foreach`` operations (its manual's *Foreach Operations*), each of which takes all
layers at once. Gradients are used as they come: adding them to a zeroed buffer would read and write a large model twice
more. Momentum and weight decay are torch's: ``torch.optim.SGD`` on the module gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch

from ...models.flat_params import FlatModel

#: Of all layers, or of several clients.
Tensors: TypeAlias = list[torch.Tensor]

#: ``objective(batch)``: the loss of a batch, a scalar that can be differentiated.
Objective = Callable[[Any], torch.Tensor]

#: ``each(model, batch)``: the losses (B,) of a batch's samples, whose mean is the objective; ``model`` is called as the
#: module is, and ``batch`` is a tuple of tensors (B, …).
EachLoss = Callable[[Callable[..., Any], Any], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Sgd:
    """A client's optimizer.

    Attributes
    ----------
    lr, momentum, weight_decay : float
        As in ``torch.optim.SGD``; no Nesterov, no dampening.
    mu : float
        Of FedProx's proximal term ``mu/2 · |w - w_r|²`` over the trained parameters (McMahan 2017; Li 2020).
    """

    lr: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    mu: float = 0.0


@dataclass(slots=True)
class LocalResult:
    """What :func:`train` did: steps, and the sum of the batches' losses."""

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
    """Train the flat model in place.

    Parameters
    ----------
    flat : FlatModel
        Holds the round's state; its present parameters are the ``w_r`` of the proximal term.
    objective : callable
    batches : iterable
    sgd : Sgd
    correction : torch.Tensor, optional
        (trainable,), added to every step's direction after momentum: SCAFFOLD's ``c - c_k``.
    velocity : torch.Tensor, optional
        (trainable,), momentum that a client kept from its last round; changed in place. None: starts from rest.
    """
    start = flat.trained.clone() if sgd.mu else None
    moving = velocity if velocity is not None else torch.zeros_like(flat.trained) if sgd.momentum else None
    kept = [None if vector is None else flat.unflatten(vector) for vector in (start, moving, correction)]
    done = LocalResult()
    for batch in batches:
        flat.clear_gradients()
        loss = objective(batch)
        loss.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            step(flat.parameters, flat.gradients(), sgd, *kept)
        done.steps += 1
        done.loss += float(loss.detach())
    flat.clear_gradients()
    return done


def step(
    weights: Tensors,
    direction: Tensors,
    sgd: Sgd,
    start: Tensors | None,
    moving: Tensors | None,
    correction: Tensors | None,
) -> None:
    """One step in place, of tensors of any shapes, the same in all lists.

    Parameters
    ----------
    weights : list of torch.Tensor
    direction : list of torch.Tensor
        The gradients; overwritten.
    sgd : Sgd
    start : list of torch.Tensor, optional
        The proximal term's ``w_r``.
    moving : list of torch.Tensor, optional
        Momentum; changed.
    correction : list of torch.Tensor, optional
        Added after momentum.
    """
    if sgd.weight_decay:
        torch._foreach_add_(direction, weights, alpha=sgd.weight_decay)
    if start is not None:
        torch._foreach_add_(direction, torch._foreach_sub(weights, start), alpha=sgd.mu)
    if moving is not None:
        torch._foreach_mul_(moving, sgd.momentum)
        torch._foreach_add_(moving, direction)
        direction = moving
    if correction is not None:
        direction = list(torch._foreach_add(direction, correction))
    torch._foreach_add_(weights, direction, alpha=-sgd.lr)


def normalizer(steps: int, sgd: Sgd) -> float:
    """How far ``steps`` steps on a constant gradient go, in steps of plain SGD: FedNova's ``A_k`` (Wang 2020).

    ``T`` for plain SGD, ``[T - ρ(1-ρ^T)/(1-ρ)]/(1-ρ)`` with momentum, ``(1-(1-ημ)^T)/(ημ)`` with a proximal term;
    weight decay does not enter. Both at once are counted by the recursion they follow.
    """
    if not sgd.momentum and not sgd.mu:
        return float(steps)
    shrink = sgd.lr * sgd.mu
    traveled = speed = 0.0
    for _ in range(steps):
        speed = sgd.momentum * speed + 1.0 - shrink * traveled
        traveled += speed
    return traveled
