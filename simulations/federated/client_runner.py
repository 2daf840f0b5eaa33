"""Plays clients, one after another, on one resident model: what a node would do and send, without the node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from ...engines.federated import batched
from ...engines.federated.array_pool import ArrayPool
from ...engines.federated.client_pool import Reply
from ...engines.federated.client_state import ClientStates
from ...engines.federated.codec import UpdateCodec
from ...engines.federated.messages import UpdateError, as_received
from ...engines.federated.methods import FedAvg, FederatedMethod, Update, Work
from ...engines.federated.task import Task
from ...engines.federated.tree import Part, TreeSum
from ...engines.federated.update_validation import validated_contribution
from ..sizes import Size, Sizer


@dataclass(slots=True)
class Block:
    """What came of a part of a cohort.

    Attributes
    ----------
    total : dict of arrays or None
        Sum of the contributions: the node of the cohort's tree that this part is.
    replies : list of Reply
    sizes : list of Size
        Of each client's update, in the order of the clients.
    missing : dict
        Client -> why its update was not added.
    """

    total: Part | None = None
    replies: list[Reply] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)


class ClientRunner:
    """Holds one model, whatever number of clients it plays.

    Parameters
    ----------
    task : Task
    codec : Codec
        What an encoding loses is lost here too.
    memories : Memories
        What each client remembers from round to round.
    largest_norm : float
        See :func:`~farshore.engines.federated.update_validation.validated_contribution`.
    together : int
        Clients that are trained at once, a power of two; 1 = one after another.
    """

    def __init__(
        self, task: Task, codec: UpdateCodec, memories: ClientStates, largest_norm: float = 0.0, together: int = 1
    ) -> None:
        self._task, self._codec, self._memories, self._largest_norm = task, codec, memories, largest_norm
        self._flat = task.model()
        self._method = task.method(self._flat)
        self._spare = ArrayPool()
        if isinstance(self._method, FedAvg):
            self._method.array_pool = self._spare
        self._sizer = Sizer()
        self._together = together

    def play(self, round_index: int, cohort: Sequence[int], down: Part, method: FederatedMethod) -> Block:
        """Round ``round_index`` for a whole cohort."""
        return self.play_part(round_index, 0, cohort, down)

    def keep(self, round_index: int) -> None:
        """The checkpoint of round ``round_index`` was saved."""
        self._memories.commit()

    def play_part(
        self, round_index: int, first: int, clients: Sequence[int], down: Part, into: Part | None = None
    ) -> Block:
        """Round ``round_index`` for the clients at the cohort's positions ``first``, ``first + 1`` …

        ``into`` holds arrays like a sum's; where the method lets it, the sum is made in them.
        """
        self._spare.prefer(into or {})
        block, tree = Block(), TreeSum(len(clients), first, self._spare.release_all)
        expected = self._method.reply(down)
        for position, (client, work, trained) in enumerate(self._trained(round_index, clients, down), first):
            message = self._codec.encode_update(round_index, trained, down, work.client_state)
            self._memories.put(client, work.client_state)
            block.sizes.append(self._sizer.size(message))
            try:
                update = self._codec.decode_update(as_received(message), round_index, down, expected)
                part = validated_contribution(self._method, down, update, self._largest_norm)
            except UpdateError as error:
                tree.skip(position)
                block.missing[client] = str(error)
            else:
                self._recycle(trained.tensors, part)
                tree.add(position, part)
                block.replies.append(Reply.from_update(client, update))
        block.total = tree.total()
        return block

    def _recycle(self, tensors: Part, part: Part) -> None:
        """Take an update's arrays back, but for those that its summand is made of."""
        for array in tensors.values():
            if not any(np.may_share_memory(array, kept) for kept in part.values()):
                self._spare.release(array)

    def _trained(self, round_index: int, clients: Sequence[int], down: Part) -> Iterator[tuple[int, Work, Update]]:
        """Train all clients, in chunks that follow from their places in the cohort alone."""
        for start in range(0, len(clients), self._together):
            chunk = clients[start : start + self._together]
            works = [self._work(round_index, client) for client in chunk]
            yield from zip(chunk, works, self._updates(down, works), strict=True)

    def _work(self, round_index: int, client: int) -> Work:
        work = self._task.work(self._flat, client, round_index)
        work.client_state = self._memories.get(client, round_index)
        return work

    def _updates(self, down: Part, works: Sequence[Work]) -> list[Update]:
        if self._together == 1:
            return [self._method.local(self._flat, down, work) for work in works]
        return batched.local(self._flat, self._method, down, works)
