"""A process group of one rank that records its collectives instead of sending them, to estimate a run's traffic.

The parts of the other ranks are copies of this rank's own, or missing. The computed values are therefore meaningless;
the sizes of the messages do not depend on them.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.distributed as dist

from ...core.control import fields_of
from ...core.message import Message, Tensor
from ...models.torch_internals import HashStore
from . import gloo_backend
from .gloo_backend import GlooGroup
from .protocol import Reduction, Request, Transport
from .star_backend import StarGroup, StarWork, completed
from .star_client import Tensors
from .star_server import StarServer
from .tensors import DEVICES, to_wire

#: What a rank sends: messages to the server, or bytes to other ranks by kind of collective.
Sent: TypeAlias = "list[Message] | dict[str, int]"


class DryStarClient:
    """Records a rank's requests in place of a :class:`~farshore.engines.collective.star_client.StarClient`."""

    #: Generation of the only group.
    generation = 1

    def __init__(self) -> None:
        self._requests: list[Message] = []
        self._sequence_numbers: dict[str, int] = defaultdict(int)

    def next_number(self, sequence: str) -> int:
        """Return the next number of a sequence."""
        self._sequence_numbers[sequence] += 1
        return self._sequence_numbers[sequence]

    def send_part(self, kind: str, number: int, request: Request, tensors: Mapping[str, torch.Tensor]) -> None:
        """Record a rank's part of a collective; only shapes and types of its tensors are kept."""
        packed = {name: _without_values(to_wire(tensor)) for name, tensor in tensors.items()}
        self._requests.append(Message(kind, micro=number, tensors=packed, fields=fields_of(request)))

    def drain(self) -> list[Message]:
        """Return the requests since the last call."""
        requests, self._requests = self._requests, []
        return requests


class DryStar(StarGroup):
    """A star group whose collectives complete at once without a reply."""

    def allgather(  # type: ignore[override]
        self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None
    ) -> StarWork:
        _fill_gathered(outputs, inputs)
        return super().allgather(outputs, inputs, opts)

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> StarWork:
        return completed(tensors)

    def _collective(
        self,
        kind: str,
        sent: Tensors | None,
        unpack: Any,
        tensors: Sequence[torch.Tensor],
        *,
        operation: Reduction | None = None,
        root: int | None = None,
    ) -> StarWork:
        return super()._collective(kind, sent, None, tensors, operation=operation, root=root)


class DryGloo:
    """Completes every collective at once, in place of gloo."""

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> StarWork:
        """Gather as if all ranks sent the same."""
        _fill_gathered(outputs, inputs)
        return completed([])

    def __getattr__(self, name: str) -> Callable[..., StarWork]:
        return lambda *args: completed(_output_tensors(args))


@contextlib.contextmanager
def dry_rank(transport: Transport, rank: int, size: int) -> Iterator[Callable[[], Sent]]:
    """Make a dry-run default process group of one rank; a context manager.

    Yields
    ------
    callable
        Returns what this rank would have sent since the last call.
    """
    client = DryStarClient()

    def make(options: Any, _: Any) -> dist.ProcessGroup:
        if transport == "peers":
            return GlooGroup(DryGloo(), options.group_rank, options.group_size)
        members = options.global_ranks_in_group or list(range(options.group_size))
        return DryStar(client, str(options.group_id), options.group_rank, options.group_size, members)  # type: ignore[arg-type]

    global _make
    _make = make
    # The name contains the transport: programs choose their collectives by it.
    backend = f"dry_{transport}"
    if not hasattr(dist.Backend, backend.upper()):
        dist.Backend.register_backend(backend, lambda *args: _make(*args), extended_api=True, devices=DEVICES)
    gloo_backend.drain_counters()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are too small for more
    dist.init_process_group(backend, store=HashStore(), rank=rank, world_size=size)
    try:
        with warnings.catch_warnings(action="ignore"):  # about performance
            yield _drain_peer_bytes if transport == "peers" else client.drain
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)
        gloo_backend.drain_counters()


_make: Callable[[Any, Any], dist.ProcessGroup]


def _drain_peer_bytes() -> dict[str, int]:
    return {kind: one.bytes for kind, one in gloo_backend.drain_counters().items()}


def replies(requests: Sequence[Sequence[Message]]) -> list[list[Message]]:
    """Return the server's replies to each rank, given the requests of all ranks in one step."""
    names = [str(rank) for rank in range(len(requests))]
    found: list[list[Message]] = [[] for _ in requests]

    def record(rank: int, message: Message) -> None:
        tensors = {name: _without_values(tensor) for name, tensor in message.tensors.items()}
        found[rank].append(replace(message, tensors=tensors))

    server = StarServer(names, DryStarClient.generation, record)
    for rank, messages in enumerate(requests):
        for message in messages:
            server.handle(rank, message)
    return found


def _fill_gathered(outputs: Sequence[Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor]) -> None:
    # DDP gathers the shapes of all ranks' parameters and refuses to start if they differ.
    for targets, own in zip(outputs, inputs, strict=True):
        for target in targets:
            target.copy_(own)


def _without_values(tensor: Tensor) -> Tensor:
    """Replace the array by zeros of the same shape and type that take no memory."""
    array = np.broadcast_to(np.zeros((), tensor.array.dtype), tensor.array.shape)
    return replace(tensor, array=array)


def _output_tensors(args: Sequence[Any]) -> list[torch.Tensor]:
    """Return the tensors that a collective writes to: those of its first argument."""
    first = args[0] if args else []
    return list(first) if isinstance(first, list) and all(isinstance(t, torch.Tensor) for t in first) else []
