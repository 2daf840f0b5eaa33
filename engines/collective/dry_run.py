"""A rank without others: its collectives are written down and done at once, to know what a run sends before it runs.

What others would send is as this rank's own, or is left out: what is computed means nothing, how much is sent does not
depend on it.
"""

from __future__ import annotations

import contextlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from ...core.message import Message, Scalar, Tensor
from . import gloo_backend
from .gloo_backend import GlooGroup
from .star_backend import StarGroup, StarWork, done
from .star_client import Tensors
from .star_server import StarServer
from .tensors import to_wire

#: What a rank sends: messages to the server, or bytes to other ranks by kind.
Sent: TypeAlias = "list[Message] | dict[str, int]"


class DryStarClient:
    """Writes down what a star's ranks ask; see :class:`~farshore.engines.collective.star_client.StarClient`."""

    #: Of the only group.
    generation = 1

    def __init__(self) -> None:
        self._asked: list[Message] = []
        self._numbers: dict[str, int] = defaultdict(int)

    def number(self, place: str) -> int:
        """The next number of a sequence."""
        self._numbers[place] += 1
        return self._numbers[place]

    def ask(
        self, kind: str, group: str, number: int, tensors: Mapping[str, torch.Tensor], fields: Mapping[str, Scalar]
    ) -> None:
        """A rank's part of a collective; of its tensors only the shapes are kept."""
        told = {"group": group, "generation": self.generation, **fields}
        packed = {name: _hollow(to_wire(tensor)) for name, tensor in tensors.items()}
        self._asked.append(Message(kind, micro=number, tensors=packed, fields=told))

    def taken(self) -> list[Message]:
        """What was asked since the last call."""
        asked, self._asked = self._asked, []
        return asked


class DryStar(StarGroup):
    """A star's rank whose questions are written down."""

    def allgather(  # type: ignore[override]
        self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None
    ) -> StarWork:
        _gather(outputs, inputs)
        return super().allgather(outputs, inputs, opts)

    def recv(self, tensors: list[torch.Tensor], source: int, tag: int) -> StarWork:
        return done(tensors)

    def _collective(
        self, kind: str, sent: Tensors | None, fields: dict[str, Any], take: Any, tensors: Sequence[torch.Tensor]
    ) -> StarWork:
        return super()._collective(kind, sent, fields, None, tensors)


class DryGloo:
    """Does nothing at once, in the place of gloo."""

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor], opts: Any = None) -> StarWork:
        """From ranks that all have the same."""
        _gather(outputs, inputs)
        return done([])

    def __getattr__(self, name: str) -> Callable[..., StarWork]:
        return lambda *given: done(_flat(given))


@contextlib.contextmanager
def dry_rank(transport: Literal["star", "peers"], rank: int, size: int) -> Iterator[Callable[[], Sent]]:
    """The default process group of one rank that has no others, as a context.

    Yields
    ------
    callable
        What was sent since it was called last.
    """
    line = DryStarClient()

    def make(options: Any, _: Any) -> dist.ProcessGroup:
        if transport == "peers":
            return GlooGroup(DryGloo(), options.group_rank, options.group_size)
        members = options.global_ranks_in_group or list(range(options.group_size))
        return DryStar(line, str(options.group_id), options.group_rank, options.group_size, members)  # type: ignore[arg-type]

    global _make
    _make = make
    # The name tells the transport, as the programs that look at it expect.
    backend = f"dry_{transport}"
    if not hasattr(dist.Backend, backend.upper()):
        dist.Backend.register_backend(backend, lambda *given: _make(*given), extended_api=True, devices=["cpu"])
    gloo_backend.taken()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so little is computed that more would only get in each other's way
    dist.init_process_group(backend, store=HashStore(), rank=rank, world_size=size)
    try:
        with warnings.catch_warnings(action="ignore"):  # of how fast this is
            yield _peers_taken if transport == "peers" else line.taken
    finally:
        dist.destroy_process_group()
        torch.set_num_threads(threads)
        gloo_backend.taken()


_make: Callable[[Any, Any], dist.ProcessGroup]


def _peers_taken() -> dict[str, int]:
    return {kind: one.bytes for kind, one in gloo_backend.taken().items()}


def answers(asked: Sequence[Sequence[Message]]) -> list[list[Message]]:
    """What the server would send each rank, given what all of them ask between two moments when none waits."""
    names = [str(rank) for rank in range(len(asked))]
    found: list[list[Message]] = [[] for _ in asked]
    hub = StarServer(names, DryStarClient.generation, lambda rank, message: found[rank].append(_hollowed(message)))
    for rank, messages in enumerate(asked):
        for message in messages:
            hub.take(rank, message)
    return found


def _gather(outputs: Sequence[Sequence[torch.Tensor]], inputs: Sequence[torch.Tensor]) -> None:
    # DDP compares what all ranks gather, and refuses to begin where they differ.
    for targets, given in zip(outputs, inputs, strict=True):
        for target in targets:
            target.copy_(given)


def _hollow(tensor: Tensor) -> Tensor:
    array = np.broadcast_to(np.zeros((), tensor.array.dtype), tensor.array.shape)
    return replace(tensor, array=array)


def _hollowed(message: Message) -> Message:
    return replace(message, tensors={name: _hollow(tensor) for name, tensor in message.tensors.items()})


def _flat(given: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors of a collective's arguments that are changed: those of the first argument."""
    first = given[0] if given else []
    return list(first) if isinstance(first, list) and all(isinstance(t, torch.Tensor) for t in first) else []
