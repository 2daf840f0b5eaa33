"""The server side of the star: reduces in rank order, so that a sum has the same bits each time, and distributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from ...core.errors import RunFailedError
from ...core.message import Message, Scalar
from .tensors import from_wire, to_wire

Tensors: TypeAlias = dict[str, torch.Tensor]
#: Message kinds of collectives.
KINDS = ("all_reduce", "reduce", "broadcast", "all_gather", "all_to_all", "send", "barrier")

_REDUCTIONS: Mapping[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "sum": lambda total, part: total.add_(part),
    "avg": lambda total, part: total.add_(part),  # divided when complete
    "min": lambda total, part: torch.minimum(total, part, out=total),
    "max": lambda total, part: torch.maximum(total, part, out=total),
    "product": lambda total, part: total.mul_(part),
}


@dataclass
class _Collective:
    """A collective in progress and the parts received so far."""

    kind: str
    operation: str
    root: int
    members: tuple[int, ...]
    parts: dict[int, Tensors] = field(default_factory=dict)
    #: How many parts are in ``total``: those of the group's first ``added`` ranks.
    added: int = 0
    total: Tensors = field(default_factory=dict)


class StarServer:
    """Serves the collectives of one generation of ranks.

    Parameters
    ----------
    names : list of str
        Nodes in the order of their ranks, for error messages.
    generation : int
        Messages of another generation are ignored.
    send : callable
        ``send(rank, message)`` with a rank of the default group.
    """

    def __init__(self, names: list[str], generation: int, send: Callable[[int, Message], None]) -> None:
        self._names, self._generation, self._send = names, generation, send
        self._open: dict[tuple[str, int], _Collective] = {}

    def handle(self, rank: int, message: Message) -> None:
        """Process a rank's part of a collective; send the replies once all parts are there.

        Raises
        ------
        RunFailedError
            The part does not match those of the other ranks.
        """
        if message.fields.get("generation") != self._generation:
            return
        group, members = str(message.fields["group"]), _members(message, len(self._names))
        if rank not in members:
            raise RunFailedError(
                f"node {self._names[rank]} sent a {message.kind} in a group that it is not a member of"
            )
        tensors = {name: from_wire(tensor) for name, tensor in message.tensors.items()}
        if message.kind == "send":
            self._reply(members[_index(message, "target", members)], message, tensors)
        elif message.kind == "broadcast":
            for other in members:
                if other != rank:
                    self._reply(other, message, tensors)
        else:
            self._collect(rank, members, group, message, tensors)

    def _collect(self, rank: int, members: tuple[int, ...], group: str, message: Message, tensors: Tensors) -> None:
        operation, root = str(message.fields.get("operation", "")), message.fields.get("root", -1)
        if not isinstance(root, int) or (message.kind in ("all_reduce", "reduce") and operation not in _REDUCTIONS):
            raise RunFailedError(
                f"node {self._names[rank]} requested {message.kind} with unknown reduction '{operation}'"
            )
        key = group, message.micro
        found = self._open.setdefault(key, _Collective(message.kind, operation, root, members))
        if (found.kind, found.operation, found.root, found.members) != (message.kind, operation, root, members):
            first = self._names[next(iter(found.parts), rank)]
            raise RunFailedError(
                f"node {self._names[rank]} called {message.kind} where node {first} called {found.kind}, "
                "or with different arguments",
                hint="all ranks must call the same collectives in the same order",
            )
        if rank in found.parts:
            raise RunFailedError(f"node {self._names[rank]} sent its part of a {message.kind} twice")
        found.parts[rank] = tensors
        if message.kind in ("all_reduce", "reduce"):
            self._add_parts(found)
        if len(found.parts) == len(members):
            del self._open[key]
            self._complete(found, message)

    def _add_parts(self, found: _Collective) -> None:
        """Add the received parts that are next in rank order: the sum never depends on the order of arrival."""
        while found.added < len(found.members) and found.members[found.added] in found.parts:
            rank = found.members[found.added]
            part, found.parts[rank] = found.parts[rank], {}
            if not found.added:
                found.total = part
            else:
                self._add_part(found, part, rank)
            found.added += 1

    def _add_part(self, found: _Collective, part: Tensors, rank: int) -> None:
        for name, total in found.total.items():
            other = part.get(name)
            if other is None or other.shape != total.shape or other.dtype != total.dtype:
                raise RunFailedError(
                    f"node {self._names[rank]}: its part of a {found.kind} does not match the "
                    f"{total.numel()} elements of {total.dtype} from node {self._names[found.members[0]]}",
                    hint="all ranks must hold the same model",
                )
            _REDUCTIONS[found.operation](total, other)

    def _complete(self, found: _Collective, message: Message) -> None:
        if found.operation == "avg":
            for total in found.total.values():
                total /= len(found.members)
        for index, rank in enumerate(found.members):
            if found.kind == "all_reduce":
                self._reply(rank, message, found.total)
            elif found.kind == "reduce":
                if index == found.root:
                    self._reply(rank, message, found.total)
            elif found.kind == "all_gather":
                others = [(i, r) for i, r in enumerate(found.members) if r != rank]
                parts = {f"{i}.{name}": t for i, r in others for name, t in found.parts[r].items()}
                self._reply(rank, message, parts)
            elif found.kind == "all_to_all":
                parts = {
                    str(i): found.parts[r][str(index)]
                    for i, r in enumerate(found.members)
                    if r != rank and str(index) in found.parts[r]
                }
                self._reply(rank, message, parts)
            else:
                self._reply(rank, message, {})

    def _reply(self, rank: int, request: Message, tensors: Tensors) -> None:
        fields: dict[str, Scalar] = {"group": str(request.fields["group"]), "generation": self._generation}
        packed = {name: to_wire(tensor) for name, tensor in tensors.items()}
        self._send(rank, Message(request.kind, step=request.step, micro=request.micro, tensors=packed, fields=fields))


def _members(message: Message, ranks: int) -> tuple[int, ...]:
    try:
        members = tuple(int(part) for part in str(message.fields["members"]).split(","))
    except (KeyError, ValueError):
        members = ()
    if not members or len(set(members)) != len(members) or not all(0 <= rank < ranks for rank in members):
        raise RunFailedError(f"the members of a {message.kind} are not a group of the {ranks} ranks")
    return members


def _index(message: Message, name: str, members: tuple[int, ...]) -> int:
    value = message.fields.get(name)
    if not isinstance(value, int) or not 0 <= value < len(members):
        raise RunFailedError(f"{message.kind}: {name} rank {value!r} is outside the group of {len(members)}")
    return value
