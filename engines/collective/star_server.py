"""The server side of the star: reduces in rank order, so that a sum has the same bits each time, and distributes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from ...core.control import fields_of, read_fields
from ...core.errors import RunFailedError, WireError
from ...core.message import Message
from .protocol import Reduction, Reply, Request
from .tensors import from_wire, to_wire

Tensors: TypeAlias = dict[str, torch.Tensor]

_REDUCTIONS: Mapping[Reduction, Callable[[torch.Tensor, torch.Tensor], Any]] = {
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
    request: Request
    parts: dict[int, Tensors] = field(default_factory=dict)
    #: How many parts are in ``total``: those of the group's first ``added`` ranks.
    added: int = 0
    total: Tensors = field(default_factory=dict)

    @property
    def members(self) -> tuple[int, ...]:
        return self.request.members


class StarServer:
    """Serves the collectives of one generation of ranks.

    Parameters
    ----------
    names : sequence of str
        Nodes in the order of their ranks, for error messages.
    generation : int
        Messages of another generation are ignored.
    send : callable
        ``send(rank, message)`` with a rank of the default group.
    """

    def __init__(self, names: Sequence[str], generation: int, send: Callable[[int, Message], None]) -> None:
        self._names, self._generation, self._send = names, generation, send
        self._open: dict[tuple[str, int], _Collective] = {}

    def handle(self, rank: int, message: Message) -> None:
        """Process a rank's part of a collective; send the replies once all parts are there.

        Raises
        ------
        WireError
            The message is invalid by itself.
        RunFailedError
            The part does not match those of the other ranks.
        """
        node = f"node {self._names[rank]}"
        request = read_fields(Request, message, node)
        if request.generation != self._generation:
            return
        self._check(node, rank, message.kind, request)
        tensors = {name: from_wire(tensor) for name, tensor in message.tensors.items()}
        if request.target is not None:
            self._reply(request.members[request.target], message, request, tensors)
        elif message.kind == "broadcast":
            for other in request.members:
                if other != rank:
                    self._reply(other, message, request, tensors)
        else:
            self._collect(rank, request, message, tensors)

    def _check(self, node: str, rank: int, kind: str, request: Request) -> None:
        """Raise :class:`WireError` unless a request is valid by itself."""
        members, size = request.members, len(self._names)
        if not members or len(set(members)) != len(members) or not all(0 <= member < size for member in members):
            raise WireError(f"{node}: the members of its {kind} are not a group of the {size} ranks")
        if rank not in members:
            raise WireError(f"{node} sent a {kind} in a group that it is not a member of")
        if (request.operation is not None) != (kind in ("all_reduce", "reduce")):
            raise WireError(f"{node}: a {kind} with the reduction {request.operation}")
        if kind == "reduce" and request.root not in range(len(members)):
            raise WireError(f"{node}: {kind}: root rank {request.root} is outside the group of {len(members)}")
        if (request.target is not None) != (kind == "send"):
            raise WireError(f"{node}: a {kind} with the target rank {request.target}")
        if request.target is not None and request.target not in range(len(members)):
            raise WireError(f"{node}: {kind}: target rank {request.target} is outside the group of {len(members)}")

    def _collect(self, rank: int, request: Request, message: Message, tensors: Tensors) -> None:
        key = request.group, message.micro
        found = self._open.setdefault(key, _Collective(message.kind, request))
        if (found.kind, found.request) != (message.kind, request):
            first = self._names[next(iter(found.parts), rank)]
            raise RunFailedError(
                f"node {self._names[rank]} called {message.kind} where node {first} called {found.kind}, "
                "or with different arguments",
                hint="all ranks must call the same collectives in the same order",
            )
        if rank in found.parts:
            raise WireError(f"node {self._names[rank]} sent its part of a {message.kind} twice")
        found.parts[rank] = tensors
        if message.kind in ("all_reduce", "reduce"):
            self._add_parts(found)
        if len(found.parts) == len(found.members):
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
            assert found.request.operation is not None, "checked on arrival"
            _REDUCTIONS[found.request.operation](total, other)

    def _complete(self, found: _Collective, message: Message) -> None:
        if found.request.operation == "avg":
            for total in found.total.values():
                total /= len(found.members)
        for index, rank in enumerate(found.members):
            if found.kind == "reduce" and index != found.request.root:
                continue
            self._reply(rank, message, found.request, self._result(found, index))

    def _result(self, found: _Collective, index: int) -> Tensors:
        """Return the tensors that the member at ``index`` of the group receives."""
        others = [(i, r) for i, r in enumerate(found.members) if i != index]
        match found.kind:
            case "all_reduce" | "reduce":
                return found.total
            case "all_gather":
                return {f"{i}.{name}": tensor for i, r in others for name, tensor in found.parts[r].items()}
            case "all_to_all":
                name = str(index)
                return {str(i): found.parts[r][name] for i, r in others if name in found.parts[r]}
            case _:
                return {}

    def _reply(self, rank: int, message: Message, request: Request, tensors: Tensors) -> None:
        packed = {name: to_wire(tensor) for name, tensor in tensors.items()}
        fields = fields_of(Reply(request.group, request.generation))
        self._send(rank, Message(message.kind, step=message.step, micro=message.micro, tensors=packed, fields=fields))
