"""The phases of one step of the preconditioner; see ``docs/methods/dp_kfac.md``, section 6."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .communication import average_factors, broadcast_preconditioned
from .inverses import inner_product, kl_scale
from .layers import Layer
from .options import value_at

if TYPE_CHECKING:
    from .preconditioner import DPKFAC


def update_factors(kfac: DPKFAC) -> None:
    """Add the statistics of the step to the running averages of the layers that are due; a collective."""
    due = [layer for layer in kfac.layers if kfac.factors_due(layer)]
    if not due:
        return
    new = kfac.statistics.collect(kfac.options.accumulation_steps)
    if broken := [n for n, (a, g) in new.items() if not (torch.isfinite(a).all() and torch.isfinite(g).all())]:
        kfac.counts["nonfinite_factors"] += len(broken)
        new = {name: pair for name, pair in new.items() if name not in broken}
    source = kfac.scheme.source
    if source in ("reduce", "allreduce") and kfac.ranks > 1:
        new = average_factors(
            new,
            due,
            kfac.owners,
            kfac.collectives,
            everywhere=source == "allreduce",
            symmetric=kfac.scheme.symmetric,
            limit=kfac.bucket_bytes,
        )
    kfac.factors.update(new, value_at(kfac.options.ema_old, kfac.steps))


def update_inverses(kfac: DPKFAC) -> None:
    """Compute the inverses that are due, and send them to the ranks that use them; a collective."""
    due = [layer for layer in kfac.layers if kfac.inverses_due(layer)]
    kfac.inverses.compute((layer for layer in due if kfac.owners[layer.name] == kfac.rank), kfac.factors, kfac.steps)
    kfac.inverses.broadcast(due, kfac.owners, kfac.grid)
    # On all ranks, owners or not: all must agree on the layers that are due.
    kfac.missing -= {layer.name for layer in due}


def precondition(kfac: DPKFAC) -> tuple[dict[str, Tensor], float]:
    """Return V of the layers that this rank preconditions, and Σ⟨V, D⟩ over those that it owns."""
    own: dict[str, Tensor] = {}
    product = 0.0
    for layer in kfac.layers:
        if not kfac.grid.preconditions(kfac.owners[layer.name]):
            continue
        gradient = _gradient(kfac, layer)
        inverse = kfac.inverses.get(layer.name)
        own[layer.name] = gradient if inverse is None else inverse(gradient).to(gradient.dtype)
        if kfac.ranks > 1:
            own[layer.name] = own[layer.name].to(kfac.options.bcast_dtype).to(gradient.dtype)
        if kfac.owners[layer.name] == kfac.rank:
            product += inner_product(own[layer.name], gradient)
    return own, product


def broadcast_and_write(kfac: DPKFAC, own: dict[str, Tensor], product: float) -> dict[str, float]:
    """Broadcast V to all ranks and replace the gradients by ν V, in the scale of the gradients.

    Returns
    -------
    dict of str
        ``nu`` and ``product``, Σ⟨V, D⟩ over all layers.
    """
    owner_only = kfac.options.grad_exchange == "owner" and kfac.ranks > 1
    clipped = kfac.options.kl_clip is not None
    total = torch.tensor([product], dtype=torch.float64, device=kfac.reference.device)
    work = kfac.collectives.all_reduce(total, "scalars") if owner_only and clipped else None
    arriving = broadcast_preconditioned(
        own,
        kfac.layers,
        kfac.owners,
        kfac.grid,
        dtype=kfac.options.bcast_dtype,
        limit=kfac.bucket_bytes,
        like=kfac.reference,
    )
    received = list(arriving)
    if work is not None:
        work.wait()
        product = float(total)
    elif clipped:
        # Every rank has every gradient: all compute the same sum in the same order without communication.
        product = sum(
            inner_product(v, _gradient(kfac, layer)) for layer, v in sorted(received, key=lambda pair: pair[0].index)
        )
    bound = None if kfac.options.kl_clip is None else value_at(kfac.options.kl_clip, kfac.steps)
    nu = kl_scale(product, kfac.lr, bound)
    for layer, v in received:
        layer.set_gradient(v * (nu * kfac.statistics.grad_scale))
    return {"nu": nu, "product": product}


def _gradient(kfac: DPKFAC, layer: Layer) -> Tensor:
    """Return the true gradient of a layer, (g, a)."""
    gradient = layer.gradient()
    return gradient if kfac.statistics.grad_scale == 1 else gradient / kfac.statistics.grad_scale
