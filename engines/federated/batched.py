"""Several clients' local training as one computation: where a model is so small that calling torch costs more than it
computes.

Parameters are stacked, ``vmap`` computes the losses of all clients at once, and the steps are
:func:`~farshore.engines.federated.local.step` on the stack. Results equal those of clients one after another up to
float32 rounding; the same clients in the same order give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from ...core.errors import ConfigError
from ...models.flat_params import FlatModel
from .local import EachLoss, LocalResult, step
from .methods import FLOATS, INTEGERS, FedAvg, FederatedMethod, Update, Work
from .tree import Part

_MOST = 32
_STACK_BYTES = 1 << 26
_HINT = "set execution to sequential or auto"


def together(flat: FlatModel) -> int:
    """How many clients of a cohort to train at once: a power of two that depends on the model's size alone.

    So a client's companions, and with them the last bits of its result, follow from its place in the cohort.
    """
    fitting = max(1, _STACK_BYTES // (4 * max(1, flat.layout.trainable)))
    return min(_MOST, 1 << (fitting.bit_length() - 1))


def check(flat: FlatModel, method: FederatedMethod, works: Sequence[Work]) -> None:
    """Say if such clients cannot be trained together.

    Raises
    ------
    ConfigError
        The method trains in a way of its own, the task gives no losses by sample, or a layer mixes a batch's samples,
        keeps statistics of them or draws random numbers.
    """
    if not isinstance(method, FedAvg) or type(method).local is not FedAvg.local:
        raise _refusal(f"method {type(method).__name__} has a local training of its own")
    if any(work.each is None for work in works):
        raise _refusal("the task's clients give no loss of each sample (Work.each)")
    for name, layer in flat.module.named_modules():
        what = type(layer).__name__
        if isinstance(layer, _NormBase) and _looks_at_batches(layer):
            raise _refusal(f"layer '{name}' ({what}) takes statistics of its batches", f"use group norm, or {_HINT}")
        if isinstance(layer, _DropoutNd) and layer.p > 0 and layer.training:
            raise _refusal(f"layer '{name}' ({what}) draws random numbers, which would not be those of single clients")


def local(flat: FlatModel, method: FederatedMethod, down: Part, works: Sequence[Work]) -> list[Update]:
    """The updates of several clients of a round, in their order; see :meth:`FederatedMethod.local`.

    Clients whose optimizers differ are trained one after another.

    Raises
    ------
    ConfigError
        What :func:`check` finds, or model or loss do what ``vmap`` cannot follow.
    """
    if any(work.sgd != works[0].sgd for work in works):
        return [method.local(flat, down, work) for work in works]
    check(flat, method, works)
    assert isinstance(method, FedAvg)
    flat.load(down[FLOATS], down[INTEGERS])
    # Longest first: the clients that still have batches are the first rows of the stack.
    order = sorted(range(len(works)), key=lambda place: -len(works[place].batches))
    ordered = [works[place] for place in order]
    corrections = [method.correction(flat, down, work) for work in ordered]
    velocities = [method.velocity(flat, work) for work in ordered]
    versions = _versions(flat.module)
    try:
        stack, moving, done = _train(flat, ordered, _stack(corrections), _stack(velocities))
    except RuntimeError as error:  # of vmap: random numbers, control flow by values, changes in place
        first = str(error).strip().splitlines()[0]
        raise _refusal(f"the model or its loss does what several clients cannot do at once: {first}") from error
    if moving is not None:
        for velocity, row in zip(velocities, moving, strict=True):
            if velocity is not None:
                velocity.copy_(row)
    if _versions(flat.module) != versions:
        raise _refusal("the model changes its buffers while it trains")
    updates: dict[int, Update] = {}
    for place, row, trained in zip(order, stack, done, strict=True):
        floats = method.copied(down[FLOATS])
        floats[: flat.layout.trainable] = row.numpy()
        updates[place] = method.update(down, works[place], floats, method.copied(down[INTEGERS]), trained)
    return [updates[place] for place in range(len(works))]


def _train(
    flat: FlatModel, works: Sequence[Work], correction: Tensor | None, moving: Tensor | None
) -> tuple[Tensor, Tensor | None, list[LocalResult]]:
    """LocalResult parameters and momentum (K, trainable) of clients whose numbers of batches do not increase."""
    sgd, start, each = works[0].sgd, flat.trained, works[0].each
    assert each is not None
    compute = vmap(_loss_of(flat, each))
    weights = start.repeat(len(works), 1)
    if moving is None and sgd.momentum:
        moving = torch.zeros_like(weights)
    losses = torch.zeros(len(works))
    for number in range(len(works[0].batches)):
        active = sum(number < len(work.batches) for work in works)
        rows = slice(active)
        leaf = weights[rows].requires_grad_()
        loss = compute(leaf, *_stacked([work.batches[number] for work in works[rows]]))
        # Clients share nothing, so the gradient of the sum holds each one's; cheaper than a grad inside of vmap.
        (direction,) = torch.autograd.grad(loss.sum(), leaf)
        losses[rows] += loss.detach()
        step(
            [weights[rows]],
            [direction],
            sgd,
            [start.expand_as(direction)] if sgd.mu else None,
            None if moving is None else [moving[rows]],
            None if correction is None else [correction[rows]],
        )
    return weights, moving, [LocalResult(len(w.batches), float(loss)) for w, loss in zip(works, losses, strict=True)]


def _stack(tensors: Sequence[Tensor | None]) -> Tensor | None:
    """(K, trainable), or None if no client has one."""
    there = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(there) if there else None


def _loss_of(flat: FlatModel, each: EachLoss) -> Any:
    """The loss of one client, as a function of its trained parameters (trainable,)."""
    views = [view for view in flat.layout.floats if view.start + view.count <= flat.layout.trainable]
    counts = [view.count for view in views]

    def loss(trained: Tensor, weight: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        pieces = zip(views, torch.split(trained, counts), strict=True)
        tensors = {view.name: piece.view(view.shape) for view, piece in pieces}
        return (each(lambda *inputs: functional_call(flat.module, tensors, inputs), batch) * weight).sum()

    return loss


def _stacked(batches: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Samples' weights (K, B), 0 where a batch is shorter than the longest, and batches whose tensors are (K, B, …)."""
    sizes = torch.tensor([len(batch[0]) for batch in batches])
    most = int(sizes.max())
    weights = (torch.arange(most) < sizes[:, None]) / sizes[:, None]
    parts = zip(*batches, strict=True)
    return weights, tuple(torch.stack([_filled(part, most) for part in same]) for same in parts)


def _filled(part: Tensor, size: int) -> Tensor:
    """With its first sample again and again at the end, so that losses of no weight are finite."""
    missing = size - len(part)
    return torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part


def _versions(module: nn.Module) -> list[int]:
    return [buffer._version for buffer in module.buffers()]


def _looks_at_batches(layer: _NormBase) -> bool:
    if isinstance(layer, _BatchNorm):
        return layer.training or not layer.track_running_stats
    return layer.training and layer.track_running_stats


def _refusal(why: str, hint: str = _HINT) -> ConfigError:
    return ConfigError(f"clients cannot be trained together: {why}", hint=hint)
