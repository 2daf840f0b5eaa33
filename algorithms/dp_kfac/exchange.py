"""Gradient averaging at each layer's owner only, as a DDP communication hook or with the module's own hooks.

Reducing a layer's gradient to its owner sends half as much as an all-reduce, and broadcasting the preconditioned
gradient the other half: a K-FAC step sends what a step of plain SGD sends (``docs/methods/dp_kfac.md``, section 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._distributed_c10d import GradBucket
from torch.nn.parallel import DistributedDataParallel
from torch.utils.hooks import RemovableHandle

from .collectives import Collectives

#: Owner of parameters outside K-FAC layers, which are averaged on all ranks.
NO_OWNER = -1


@dataclass
class _Pending:
    """A collective in progress, and what to do when it has completed."""

    work: Any
    finish: Callable[[], None]


class OwnerExchange:
    """Averages each gradient at the owner of its layer.

    Parameters
    ----------
    algorithm : {"all_to_all", "reduce"}, optional
        Default: all-to-all on gloo, whose reduce sends (1 + 1/P) times the necessary bytes or more; else one reduce per
        owner.

    Notes
    -----
    The gradient of a layer that another rank owns stays this rank's local gradient.
    """

    def __init__(self, collectives: Collectives, algorithm: str | None = None) -> None:
        #: Owner of each parameter; parameters that are missing here are averaged on all ranks.
        self.owners: Mapping[Tensor, int] = {}
        self.collectives = collectives
        self._algorithm = algorithm
        self._pending: list[_Pending] = []

    def launch(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Start to exchange gradients; all ranks must pass the same parameters in the same order."""
        by_owner: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for parameter, gradient in zip(parameters, gradients, strict=True):
            by_owner.setdefault(self.owners.get(parameter, NO_OWNER), []).append((parameter, gradient))
        if unowned := by_owner.pop(NO_OWNER, None):
            self._average(unowned)
        if by_owner and self._uses_all_to_all(gradients[0]):
            self._send_parts(by_owner)
        elif by_owner:
            for owner in sorted(by_owner):
                self._reduce(by_owner[owner], owner)

    def _uses_all_to_all(self, gradient: Tensor) -> bool:
        if self._algorithm:
            return self._algorithm == "all_to_all"
        # "peers" is gloo with counters. "star" reduces at the server, where a reduce is one message per rank.
        return gradient.device.type == "cpu" and any(name in self.collectives.backend for name in ("gloo", "peers"))

    def finish(self) -> None:
        """Wait for all exchanges; afterwards gradients of owned layers and unowned parameters are averages."""
        for pending in self._pending:
            pending.work.wait()
            pending.finish()
        self._pending.clear()

    def _average(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        flat = torch.cat([gradient.reshape(-1) for _, gradient in pairs])
        work = self.collectives.all_reduce(flat, "gradients")
        self._pending.append(_Pending(work, lambda: self._write(pairs, flat)))

    def _reduce(self, pairs: list[tuple[Tensor, Tensor]], owner: int) -> None:
        flat = torch.cat([gradient.reshape(-1) for _, gradient in pairs])
        work = self.collectives.reduce(flat, owner, "gradients")
        is_owner = owner == self.collectives.rank
        self._pending.append(_Pending(work, lambda: self._write(pairs, flat) if is_owner else None))

    def _send_parts(self, by_owner: Mapping[int, list[tuple[Tensor, Tensor]]]) -> None:
        ranks, rank = self.collectives.ranks, self.collectives.rank
        sizes = [sum(gradient.numel() for _, gradient in by_owner.get(r, ())) for r in range(ranks)]
        flat = torch.cat([gradient.reshape(-1) for r in sorted(by_owner) for _, gradient in by_owner[r]])
        received, work = self.collectives.all_to_all(flat, sizes, "gradients")
        own = by_owner.get(rank, [])
        self._pending.append(_Pending(work, lambda: self._write(own, received.sum(dim=0))))

    def _write(self, pairs: Sequence[tuple[Tensor, Tensor]], flat: Tensor) -> None:
        flat /= self.collectives.ranks
        parts = torch.split(flat, [gradient.numel() for _, gradient in pairs]) if pairs else ()
        for (parameter, _), part in zip(pairs, parts, strict=True):
            if parameter.grad is None:
                parameter.grad = part.reshape(parameter.shape).clone()
            else:
                parameter.grad.copy_(part.view(parameter.shape))

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """Replace DDP's all-reduce by a communication hook."""

        def hook(state: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
            # DDP rebuilds its buckets after the first step: read the layout each time.
            buffer = bucket.buffer()
            self.launch(bucket.parameters(), bucket.gradients())
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(buffer)
            return done

        # DDP checks the annotations, which are strings in this module.
        hook.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}
        ddp.register_comm_hook(None, hook)


class GradientBuckets:
    """Starts the exchange of gradients during the backward pass, without DDP.

    Parameters
    ----------
    parameters : sequence of Parameter
        In the model's order; buckets fill from the end, in the order of the backward pass.
    exchange : OwnerExchange
    bucket_bytes : int
        Size of a bucket.
    accumulation : int
        Gradients per parameter and step; a bucket is sent after the last one.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], exchange: OwnerExchange, bucket_bytes: int, accumulation: int = 1
    ) -> None:
        self._exchange = exchange
        self._accumulation = accumulation
        self._buckets = _buckets(list(reversed(parameters)), bucket_bytes)
        self._bucket_index = {id(p): index for index, bucket in enumerate(self._buckets) for p in bucket}
        self._handles: list[RemovableHandle] = [
            p.register_post_accumulate_grad_hook(self._on_gradient)  # type: ignore[no-untyped-call]
            for p in parameters
        ]
        self._reset()

    def finish(self) -> None:
        """Send the remaining buckets, with zeros for parameters without a gradient, and wait for all."""
        while self._next < len(self._buckets):
            self._launch_next()
        self._exchange.finish()
        self._reset()

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _reset(self) -> None:
        self._next = 0
        self._missing = [len(bucket) * self._accumulation for bucket in self._buckets]

    def _on_gradient(self, parameter: nn.Parameter) -> None:
        self._missing[self._bucket_index[id(parameter)]] -= 1
        # In the order of the buckets: autograd's order may differ between ranks.
        while self._next < len(self._buckets) and self._missing[self._next] <= 0:
            self._launch_next()

    def _launch_next(self) -> None:
        bucket = self._buckets[self._next]
        self._next += 1
        self._exchange.launch(bucket, [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket])


def _buckets(parameters: Sequence[nn.Parameter], limit: int) -> list[list[nn.Parameter]]:
    found: list[list[nn.Parameter]] = []
    size = limit
    for parameter in parameters:
        if size >= limit:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += parameter.numel() * parameter.element_size()
    return found
