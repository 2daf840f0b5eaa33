"""The server's end of the star: adds up and passes on, in the order of ranks: a sum has the same bits each time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from ...core.errors import RunFailedError
from ...core.message import Message, Scalar
from .tensors import from_wire, to_wire

Tensors: TypeAlias = dict[str, torch.Tensor]
#: Kinds of message that are collectives.
KINDS = ("all_reduce", "reduce", "broadcast", "all_gather", "all_to_all", "send", "barrier")

_IN_PLACE: Mapping[str, Callable[[torch.Tensor, torch.Tensor], Any]] = {
    "sum": lambda total, more: total.add_(more),
    "avg": lambda total, more: total.add_(more),
    "min": lambda total, more: torch.minimum(total, more, out=total),
    "max": lambda total, more: torch.maximum(total, more, out=total),
    "product": lambda total, more: total.mul_(more),
}


@dataclass
class _Collective:
    """One under way: who has sent what."""

    kind: str
    operation: str
    root: int
    members: tuple[int, ...]
    sent: dict[int, Tensors] = field(default_factory=dict)
    #: Ranks whose parts are in the sum already: the first so many of the group.
    added: int = 0
    total: Tensors = field(default_factory=dict)


class StarServer:
    """Serves the collectives of one generation of ranks.

    Parameters
    ----------
    names : sequence of str
        Nodes in the order of ranks, for errors.
    generation : int
    send : callable
        ``send(rank, message)``; rank of the world.
    """

    def __init__(self, names: list[str], generation: int, send: Callable[[int, Message], None]) -> None:
        self._names, self._generation, self._send = names, generation, send
        self._open: dict[tuple[str, int], _Collective] = {}

    def take(self, rank: int, message: Message) -> None:
        """A rank's part of a collective; what it completes goes out at once.

        Raises
        ------
        RunFailedError
            It does not fit what the other ranks sent.
        """
        if message.fields.get("generation") != self._generation:
            return
        place, members = str(message.fields["group"]), _members(message, len(self._names))
        if rank not in members:
            raise RunFailedError(f"node {self._names[rank]} is no member of the group that it sent a {message.kind} in")
        tensors = {name: from_wire(tensor) for name, tensor in message.tensors.items()}
        if message.kind == "send":
            self._reply(members[_index(message, "target", members)], message, tensors)
        elif message.kind == "broadcast":
            for other in members:
                if other != rank:
                    self._reply(other, message, tensors)
        else:
            self._gather(rank, members, place, message, tensors)

    def _gather(self, rank: int, members: tuple[int, ...], place: str, message: Message, tensors: Tensors) -> None:
        operation, root = str(message.fields.get("operation", "")), message.fields.get("root", -1)
        if not isinstance(root, int) or (message.kind in ("all_reduce", "reduce") and operation not in _IN_PLACE):
            raise RunFailedError(f"node {self._names[rank]} wants a {message.kind} by '{operation}', which is none")
        key = place, message.micro
        found = self._open.setdefault(key, _Collective(message.kind, operation, root, members))
        if (found.kind, found.operation, found.root, found.members) != (message.kind, operation, root, members):
            first = self._names[next(iter(found.sent), rank)]
            raise RunFailedError(
                f"node {self._names[rank]} wants a {message.kind} where node {first} wants a {found.kind}",
                hint="all ranks must call the same collectives in the same order",
            )
        if rank in found.sent:
            raise RunFailedError(f"node {self._names[rank]} sent its part of a {message.kind} twice")
        found.sent[rank] = tensors
        if message.kind in ("all_reduce", "reduce"):
            self._add(found)
        if len(found.sent) == len(members):
            del self._open[key]
            self._complete(found, message)

    def _add(self, found: _Collective) -> None:
        """Add what comes next in the order of ranks, so that a sum never depends on who was first."""
        while found.added < len(found.members) and found.members[found.added] in found.sent:
            rank = found.members[found.added]
            part, found.sent[rank] = found.sent[rank], {}
            if not found.added:
                found.total = part
            else:
                self._join(found, part, rank)
            found.added += 1

    def _join(self, found: _Collective, part: Tensors, rank: int) -> None:
        for name, total in found.total.items():
            more = part.get(name)
            if more is None or more.shape != total.shape or more.dtype != total.dtype:
                raise RunFailedError(
                    f"node {self._names[rank]}: its part of a {found.kind} does not fit "
                    f"{self._names[found.members[0]]}'s {total.numel()} numbers of {total.dtype}",
                    hint="all ranks must hold the same model",
                )
            _IN_PLACE[found.operation](total, more)

    def _complete(self, found: _Collective, message: Message) -> None:
        if found.operation == "avg":
            for total in found.total.values():
                total /= len(found.members)
        for place, rank in enumerate(found.members):
            if found.kind == "all_reduce":
                self._reply(rank, message, found.total)
            elif found.kind == "reduce":
                if place == found.root:
                    self._reply(rank, message, found.total)
            elif found.kind == "all_gather":
                others = [(p, r) for p, r in enumerate(found.members) if r != rank]
                parts = {f"{p}.{name}": t for p, r in others for name, t in found.sent[r].items()}
                self._reply(rank, message, parts)
            elif found.kind == "all_to_all":
                parts = {
                    str(p): found.sent[r][str(place)]
                    for p, r in enumerate(found.members)
                    if r != rank and str(place) in found.sent[r]
                }
                self._reply(rank, message, parts)
            else:
                self._reply(rank, message, {})

    def _reply(self, rank: int, asked: Message, tensors: Tensors) -> None:
        fields: dict[str, Scalar] = {"group": str(asked.fields["group"]), "generation": self._generation}
        packed = {name: to_wire(tensor) for name, tensor in tensors.items()}
        self._send(rank, Message(asked.kind, step=asked.step, micro=asked.micro, tensors=packed, fields=fields))


def _members(message: Message, ranks: int) -> tuple[int, ...]:
    try:
        members = tuple(int(part) for part in str(message.fields["members"]).split(","))
    except (KeyError, ValueError):
        members = ()
    if not members or len(set(members)) != len(members) or not all(0 <= rank < ranks for rank in members):
        raise RunFailedError(f"a {message.kind} names no group of the {ranks} ranks")
    return members


def _index(message: Message, name: str, members: tuple[int, ...]) -> int:
    value = message.fields.get(name)
    if not isinstance(value, int) or not 0 <= value < len(members):
        raise RunFailedError(f"a {message.kind} goes to rank {value!r} of {len(members)}")
    return value
