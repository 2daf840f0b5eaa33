"""Averaging gradients: each layer's at its owner only, the others' everywhere; under DDP, or by hooks of one's own.

The owners' way costs half an all-reduce for a layer; sending the preconditioned gradient back costs the other half, so
a K-FAC step moves what a plain SGD step does (specification §8.2).
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

#: The owner of what everybody owns: parameters outside K-FAC layers.
PLAIN = -1


@dataclass
class _Due:
    """What is under way, and what to do when it has come."""

    work: Any
    finish: Callable[[], None]


class OwnerExchange:
    """Gradients to their owners.

    Parameters
    ----------
    way : "all_to_all", "reduce" or None
        None chooses: all-to-all on gloo, whose reduce moves a quarter more than it must; else one reduce an owner.

    Notes
    -----
    Between the backward pass and :meth:`finish` a gradient that belongs to another rank is this rank's own.
    """

    def __init__(self, collectives: Collectives, way: str | None = None) -> None:
        #: Owner of each parameter; those that are not in it are averaged everywhere.
        self.owners: Mapping[Tensor, int] = {}
        self.collectives = collectives
        self._way = way
        self._due: list[_Due] = []

    def launch(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Begin to exchange some gradients; all ranks must name the same parameters in the same order."""
        by_owner: dict[int, list[tuple[Tensor, Tensor]]] = {}
        for parameter, gradient in zip(parameters, gradients, strict=True):
            by_owner.setdefault(self.owners.get(parameter, PLAIN), []).append((parameter, gradient))
        if plain := by_owner.pop(PLAIN, None):
            self._average(plain)
        if by_owner and self._all_to_all(gradients[0]):
            self._send_parts(by_owner)
        elif by_owner:
            for owner in sorted(by_owner):
                self._reduce(by_owner[owner], owner)

    def _all_to_all(self, gradient: Tensor) -> bool:
        if self._way:
            return self._way == "all_to_all"
        # "peers" is gloo, counted; a star adds up at the server, for which a reduce is one message.
        return gradient.device.type == "cpu" and any(name in self.collectives.backend for name in ("gloo", "peers"))

    def finish(self) -> None:
        """Wait for all that was launched; owned and plain gradients are averages then."""
        for due in self._due:
            due.work.wait()
            due.finish()
        self._due.clear()

    def _average(self, pairs: list[tuple[Tensor, Tensor]]) -> None:
        flat = torch.cat([gradient.reshape(-1) for _, gradient in pairs])
        work = self.collectives.all_reduce(flat, "gradients")
        self._due.append(_Due(work, lambda: self._write(pairs, flat)))

    def _reduce(self, pairs: list[tuple[Tensor, Tensor]], owner: int) -> None:
        flat = torch.cat([gradient.reshape(-1) for _, gradient in pairs])
        work = self.collectives.reduce(flat, owner, "gradients")
        mine = owner == self.collectives.rank
        self._due.append(_Due(work, lambda: self._write(pairs, flat) if mine else None))

    def _send_parts(self, by_owner: Mapping[int, list[tuple[Tensor, Tensor]]]) -> None:
        ranks, rank = self.collectives.ranks, self.collectives.rank
        sizes = [sum(gradient.numel() for _, gradient in by_owner.get(r, ())) for r in range(ranks)]
        flat = torch.cat([gradient.reshape(-1) for r in sorted(by_owner) for _, gradient in by_owner[r]])
        received, work = self.collectives.all_to_all(flat, sizes, "gradients")
        mine = by_owner.get(rank, [])
        self._due.append(_Due(work, lambda: self._write(mine, received.sum(dim=0))))

    def _write(self, pairs: Sequence[tuple[Tensor, Tensor]], flat: Tensor) -> None:
        flat /= self.collectives.ranks
        parts = torch.split(flat, [gradient.numel() for _, gradient in pairs]) if pairs else ()
        for (parameter, _), part in zip(pairs, parts, strict=True):
            if parameter.grad is None:
                parameter.grad = part.reshape(parameter.shape).clone()
            else:
                parameter.grad.copy_(part.view(parameter.shape))

    def attach_ddp(self, ddp: DistributedDataParallel) -> None:
        """Take the place of DDP's all-reduce."""

        def hook(state: object, bucket: GradBucket) -> torch.futures.Future[Tensor]:
            # The layout of buckets changes after the first step: it is read anew each time.
            buffer = bucket.buffer()
            self.launch(bucket.parameters(), bucket.gradients())
            done: torch.futures.Future[Tensor] = torch.futures.Future()
            done.set_result(buffer)
            return done

        # DDP compares annotations with classes, and here they are strings.
        hook.__annotations__ = {"bucket": GradBucket, "return": torch.futures.Future[Tensor]}
        ddp.register_comm_hook(None, hook)


class ReadyBuckets:
    """Launches an exchange while the backward pass goes on, without DDP.

    Parameters
    ----------
    parameters : sequence of Parameter
        In the model's order; buckets fill from the end, as gradients come.
    exchange : OwnerExchange
    bucket_bytes : int
        Of one bucket.
    accumulation : int
        Nothing is sent before a parameter got so many gradients.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], exchange: OwnerExchange, bucket_bytes: int, accumulation: int = 1
    ) -> None:
        self._exchange = exchange
        self._accumulation = accumulation
        self._buckets = _buckets(list(reversed(parameters)), bucket_bytes)
        self._place = {id(p): index for index, bucket in enumerate(self._buckets) for p in bucket}
        self._handles: list[RemovableHandle] = [
            p.register_post_accumulate_grad_hook(self._came)  # type: ignore[no-untyped-call]
            for p in parameters
        ]
        self._begin()

    def finish(self) -> None:
        """Launch what has not been: layers that had no part in this step send zeros."""
        while self._next < len(self._buckets):
            self._launch_next()
        self._exchange.finish()
        self._begin()

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    def _begin(self) -> None:
        self._next = 0
        self._missing = [len(bucket) * self._accumulation for bucket in self._buckets]

    def _came(self, parameter: nn.Parameter) -> None:
        self._missing[self._place[id(parameter)]] -= 1
        # In the buckets' order on every rank, whatever the order of autograd.
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
