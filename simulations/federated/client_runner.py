"""Trains simulated clients one after another on one resident model and produces the updates that nodes would send."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from ...core.devices import ComputeSettings
from ...engines.federated import batched
from ...engines.federated.array_pool import ArrayPool, LendsState, UsesArrayPool
from ...engines.federated.client_pool import Reply
from ...engines.federated.client_state import ClientState, ClientStates
from ...engines.federated.client_training import CannotTrain, attempt, prepare
from ...engines.federated.codec import UpdateCodec
from ...engines.federated.compute import resident_model
from ...engines.federated.messages import UpdateError, as_received, declined_message
from ...engines.federated.methods import FederatedMethod, Update, Work
from ...engines.federated.task import Task
from ...engines.federated.tree import NamedArrays, TreeSum
from ...engines.federated.update_validation import validated_contribution
from ...wire.allocator import keep_freed_memory
from ..sizes import Size, Sizer


@dataclass(slots=True)
class BlockResult:
    """Outcome of training a block of a cohort.

    Attributes
    ----------
    total : dict of arrays or None
        Sum of the contributions, which is a node of the cohort's reduction tree; None if there were none.
    replies : list of Reply
        Replies whose updates were added, in the order of the clients.
    sizes : list of Size
        Size of each client's update, in the order of the clients.
    missing : dict
        Client -> why its update was not added.
    """

    total: NamedArrays | None = None
    replies: list[Reply] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)
    missing: dict[int, str] = field(default_factory=dict)


class ClientRunner:
    """Trains any number of clients with a single model in memory.

    Parameters
    ----------
    task : Task
    codec : UpdateCodec
        Encodes and decodes each update, so that encoding losses are those of a distributed run.
    client_states : ClientStates
        State of each client between rounds.
    largest_norm : float
        See :func:`~farshore.engines.federated.update_validation.validated_contribution`.
    clients_at_once : int
        Number of clients trained at once (batched), a power of two; 1 = sequential.
    compute : ComputeSettings, optional
        Device and precision of the training.
    """

    def __init__(
        self,
        task: Task,
        codec: UpdateCodec,
        client_states: ClientStates,
        largest_norm: float = 0.0,
        clients_at_once: int = 1,
        compute: ComputeSettings | None = None,
    ) -> None:
        self._task, self._codec, self._client_states, self._largest_norm = task, codec, client_states, largest_norm
        self._flat = resident_model(task, compute or ComputeSettings())
        keep_freed_memory(4 * self._flat.layout.total)  # of gradients
        self._method = task.method(self._flat)
        self._array_pool = ArrayPool()
        if isinstance(self._method, UsesArrayPool):
            self._method.array_pool = self._array_pool
        if isinstance(self._method, LendsState):
            # An update is added before the next client is trained, unless several are trained at once.
            self._method.lends_state = self._method.can_lend_state and clients_at_once == 1
        self._sizer = Sizer()
        self._clients_at_once = clients_at_once

    def train(self, round_index: int, cohort: Sequence[int], down: NamedArrays, method: FederatedMethod) -> BlockResult:
        """Train a whole cohort from the state ``down`` in round ``round_index``."""
        return self.train_block(round_index, 0, cohort, down)

    def checkpoint_saved(self, round_index: int) -> None:
        """Mark the client states as covered by the checkpoint of round ``round_index``."""
        self._client_states.commit()

    def train_block(
        self, round_index: int, first: int, clients: Sequence[int], down: NamedArrays, into: NamedArrays | None = None
    ) -> BlockResult:
        """Train the clients at the positions ``first``, ``first + 1``, … of the cohort of round ``round_index``.

        ``into`` has arrays with the names, shapes and dtypes of a sum. The sum is written to them if the method
        supports it.
        """
        self._array_pool.prefer(into or {})
        result, tree = BlockResult(), TreeSum(len(clients), first, self._array_pool.release_all)
        expected = self._method.reply(down)
        for position, (client, state, update) in enumerate(self._train_all(round_index, clients, down), first):
            if isinstance(update, CannotTrain):
                message = declined_message(round_index, update.reason)
            else:
                message = self._codec.encode_update(round_index, update, down, state)
                self._client_states.put(client, state)
            result.sizes.append(self._sizer.size(message))
            try:
                received = self._codec.decode_update(as_received(message), round_index, down, expected)
                contribution = validated_contribution(self._method, down, received, self._largest_norm)
            except UpdateError as error:
                tree.skip(position)
                result.missing[client] = str(error)
            else:
                self._recycle(update.tensors if isinstance(update, Update) else {}, contribution)
                tree.add(position, contribution)
                result.replies.append(Reply.from_update(client, received))
        result.total = tree.total()
        return result

    def _recycle(self, tensors: NamedArrays, contribution: NamedArrays) -> None:
        """Return an update's arrays to the pool, except those that share memory with its contribution."""
        for array in tensors.values():
            if not any(np.may_share_memory(array, shared) for shared in contribution.values()):
                self._array_pool.release(array)

    def _train_all(
        self, round_index: int, clients: Sequence[int], down: NamedArrays
    ) -> Iterator[tuple[int, ClientState, Update | CannotTrain]]:
        """Train all clients in chunks; which chunk a client is in depends on its position in the cohort only."""
        for start in range(0, len(clients), self._clients_at_once):
            chunk = clients[start : start + self._clients_at_once]
            works = [self._work(round_index, client) for client in chunk]
            updates = iter(self._train_chunk(down, [work for work in works if isinstance(work, Work)]))
            for client, work in zip(chunk, works, strict=True):
                yield (client, work.client_state, next(updates)) if isinstance(work, Work) else (client, {}, work)

    def _work(self, round_index: int, client: int) -> Work | CannotTrain:
        work = prepare(partial(self._task.work, self._flat, client, round_index))
        if isinstance(work, Work):
            work.client_state = self._client_states.get(client, round_index)
        return work

    def _train_chunk(self, down: NamedArrays, works: Sequence[Work]) -> Sequence[Update | CannotTrain]:
        if self._clients_at_once == 1 or not works:
            return [attempt(partial(self._method.local, self._flat, down, work)) for work in works]
        return batched.local(self._flat, self._method, down, works)
