"""Trains several clients as one batched computation, for models so small that torch's call overhead dominates.

Parameters are stacked, ``vmap`` computes the losses of all clients, and the steps are
:func:`~farshore.engines.federated.local.step` on the stack. Results equal those of sequential training up to float32
rounding; the same clients in the same order give the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ...core.errors import ConfigError
from ...models.flat_params import FlatModel, host_array
from ...models.torch_internals import BatchNormBase, DropoutBase, NormBase
from .compute import to_device
from .local import LocalResult, SampleLosses, step
from .methods import FLOATS, INTEGERS, FedAvg, FederatedMethod, Update, Work
from .tree import NamedArrays

#: Largest group of clients, and largest stack of their parameters.
_MAX_CLIENTS = 32
_STACK_BYTES = 1 << 26
_HINT = "set execution to sequential or auto"


def group_size(flat: FlatModel) -> int:
    """Return how many clients to train at once: a power of two that depends only on the model's size.

    A client's group, and with it the last bits of its result, are thus determined by its position in the cohort.
    """
    fitting = max(1, _STACK_BYTES // (4 * max(1, flat.layout.trainable)))
    return min(_MAX_CLIENTS, 1 << (fitting.bit_length() - 1))


def check(flat: FlatModel, method: FederatedMethod, works: Sequence[Work]) -> None:
    """Check that these clients can be trained as a batch.

    Raises
    ------
    ConfigError
        The precision is not fp32, the method overrides local training, the task provides no losses by sample, or a
        layer mixes the samples of a batch, keeps statistics of them or draws random numbers.
    """
    if flat.precision != "fp32":
        raise _refusal(f"batched training is in fp32, not {flat.precision}", f"set precision to fp32, or {_HINT}")
    if not getattr(method, "trains_in_batches", False):
        raise _refusal(f"method {type(method).__name__} overrides local training")
    if any(work.sample_losses is None for work in works):
        raise _refusal("the task provides no loss per sample (Work.sample_losses)")
    for name, layer in flat.module.named_modules():
        what = type(layer).__name__
        if isinstance(layer, NormBase) and _uses_batch_statistics(layer):
            raise _refusal(f"layer '{name}' ({what}) uses batch statistics", f"use group norm, or {_HINT}")
        if isinstance(layer, DropoutBase) and layer.p > 0 and layer.training:
            raise _refusal(f"layer '{name}' ({what}) draws random numbers, which would differ from sequential training")


def local(flat: FlatModel, method: FederatedMethod, down: NamedArrays, works: Sequence[Work]) -> list[Update]:
    """Train several clients of a round and return their updates in order; see :meth:`FederatedMethod.local`.

    Clients with different optimizers are trained sequentially.

    Raises
    ------
    ConfigError
        As :func:`check`, or the model or its loss does something that ``vmap`` does not support.
    """
    if any(work.sgd != works[0].sgd for work in works):
        return [method.local(flat, down, work) for work in works]
    check(flat, method, works)
    batchable = cast(FedAvg, method)  # it declares the capability
    flat.load(down[FLOATS], down[INTEGERS])
    # Longest first, so that the clients with remaining batches are the first rows of the stack.
    order = sorted(range(len(works)), key=lambda index: -len(works[index].batches))
    ordered = [works[index] for index in order]
    corrections = [batchable.correction(flat, down, work) for work in ordered]
    velocities = [batchable.velocity(flat, work) for work in ordered]
    versions = _versions(flat.module)
    try:
        stack, momentum, results = _train(flat, ordered, _stack(corrections, flat), _stack(velocities, flat))
    except RuntimeError as error:  # from vmap: random numbers, data-dependent control flow, in-place changes
        first = str(error).strip().splitlines()[0]
        raise _refusal(f"the model or its loss does something that vmap does not support: {first}") from error
    if momentum is not None:
        for velocity, row in zip(velocities, momentum, strict=True):
            if velocity is not None:
                velocity.copy_(row)
    if _versions(flat.module) != versions:
        raise _refusal("the model changes its buffers during training")
    updates: dict[int, Update] = {}
    for index, row, result in zip(order, host_array(stack), results, strict=True):
        floats = batchable.copy_array(down[FLOATS])
        floats[: flat.layout.trainable] = row
        updates[index] = batchable.update(down, works[index], floats, batchable.copy_array(down[INTEGERS]), result)
    return [updates[index] for index in range(len(works))]


def _train(
    flat: FlatModel, works: Sequence[Work], correction: Tensor | None, momentum: Tensor | None
) -> tuple[Tensor, Tensor | None, list[LocalResult]]:
    """Train clients whose numbers of batches do not increase; return parameters and momentum (K, trainable)."""
    sgd, start, sample_losses = works[0].sgd, flat.trained, works[0].sample_losses
    assert sample_losses is not None
    compute = vmap(_loss_of(flat, sample_losses))
    weights = start.repeat(len(works), 1)
    if momentum is None and sgd.momentum:
        momentum = torch.zeros_like(weights)
    losses = torch.zeros(len(works), device=flat.device)
    for index in range(len(works[0].batches)):
        active = sum(index < len(work.batches) for work in works)
        rows = slice(active)
        leaf = weights[rows].requires_grad_()
        loss = compute(leaf, *to_device(_stacked([work.batches[index] for work in works[rows]]), flat.device))
        # Clients share no parameters, so the gradient of the sum holds each one's; cheaper than grad inside vmap.
        (direction,) = torch.autograd.grad(loss.sum(), leaf)
        losses[rows] += loss.detach()
        step(
            [weights[rows]],
            [direction],
            sgd,
            [start.expand_as(direction)] if sgd.mu else None,
            None if momentum is None else [momentum[rows]],
            None if correction is None else [correction[rows]],
        )
    return weights, momentum, [LocalResult(len(w.batches), x) for w, x in zip(works, losses.tolist(), strict=True)]


def _stack(tensors: Sequence[Tensor | None], flat: FlatModel) -> Tensor | None:
    """Stack to (K, trainable) on the model's device; None if no client has a tensor."""
    present = [tensor for tensor in tensors if tensor is not None]
    return torch.stack(present).to(flat.device) if present else None


def _loss_of(flat: FlatModel, sample_losses: SampleLosses) -> Any:
    """Return the loss of one client as a function of its trained parameters (trainable,)."""
    views = [view for view in flat.layout.floats if view.start + view.count <= flat.layout.trainable]
    counts = [view.count for view in views]

    def loss(trained: Tensor, weight: Tensor, batch: tuple[Tensor, ...]) -> Tensor:
        pieces = zip(views, torch.split(trained, counts), strict=True)
        tensors = {view.name: piece.view(view.shape) for view, piece in pieces}
        return (sample_losses(lambda *inputs: functional_call(flat.module, tensors, inputs), batch) * weight).sum()

    return loss


def _stacked(batches: Sequence[tuple[Tensor, ...]]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Return sample weights (K, B), 0 for padding of shorter batches, and batches with tensors (K, B, …)."""
    lengths = [len(batch[0]) for batch in batches]
    sizes, longest = torch.tensor(lengths), max(lengths)
    weights = (torch.arange(longest) < sizes[:, None]) / sizes[:, None]
    parts = zip(*batches, strict=True)
    return weights, tuple(torch.stack([_padded(part, longest) for part in same]) for same in parts)


def _padded(part: Tensor, size: int) -> Tensor:
    """Pad with repetitions of the first sample, so that losses of weight 0 are finite."""
    missing = size - len(part)
    return torch.cat([part, part[:1].expand(missing, *part.shape[1:])]) if missing else part


def _versions(module: nn.Module) -> list[int]:
    return [buffer._version for buffer in module.buffers()]


def _uses_batch_statistics(layer: NormBase) -> bool:
    if isinstance(layer, BatchNormBase):
        return layer.training or not layer.track_running_stats
    return layer.training and layer.track_running_stats


def _refusal(why: str, hint: str = _HINT) -> ConfigError:
    return ConfigError(f"clients cannot be trained as a batch: {why}", hint=hint)
