"""A ``torch.distributed`` backend whose collectives go through the server, over the run's own metered channels.

It implements what DistributedDataParallel, its communication hooks and the functions of ``torch.distributed`` need:
all-reduce, broadcast, reduce, all-gather, all-to-all, send, receive and barrier. Each collective is one message to the
server per rank, and one reply to each rank that receives something. Tensors of an accelerator are copied to the host
for the message, and results to the tensors on their device; see :class:`~.tensors.HostCopies` for what is tested.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from contextvars import ContextVar
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...models.devices import released_generators
from ...models.torch_internals import Work, after_backward
from .protocol import Reduction, Request
from .star_client import PendingReply, StarClient, Tensors
from .tensors import DEVICES, copy_into, synchronize
from .thread_waits import ThreadWaits

#: Names of the reductions in messages.
REDUCTIONS: Mapping[Any, Reduction] = {
    dist.ReduceOp.SUM: "sum",
    dist.ReduceOp.AVG: "avg",
    dist.ReduceOp.MIN: "min",
    dist.ReduceOp.MAX: "max",
    dist.ReduceOp.PRODUCT: "product",
}


class StarWork(Work):
    """A collective in progress; without ``waits`` one that is complete."""

    def __init__(self, reply: PendingReply, waits: ThreadWaits | None = None) -> None:
        super().__init__()
        self._reply, self._waits = reply, waits

    def wait(self, timeout: Any = None) -> bool:
        """Block until the results are in the collective's tensors.

        Raises
        ------
        FarshoreError
            The group was aborted, or the reply does not fit the tensors.
        """
        noted = nullcontext() if self._waits is None else self._waits.waiting(self._reply.arrived.is_set)
        try:
            with noted, released_generators():  # other ranks may be threads of this process
                self._reply.future.wait()
        except RuntimeError:
            if self._reply.error is not None:
                raise self._reply.error from None
            raise
        return True

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """Return a future of the collective's tensors."""
        # DDP waits for its futures at the end of the backward pass, in C++, where the wait cannot be noted.
        if self._waits is not None and self._waits.active and not after_backward(self._wait_for_reply):
            self._waits.hide()
        return self._reply.future

    def _wait_for_reply(self) -> None:
        assert self._waits is not None
        with self._waits.waiting(self._reply.arrived.is_set):
            self._reply.arrived.wait()

    def is_completed(self) -> bool:
        """Return whether :meth:`wait` would return at once."""
        return bool(self._reply.future.done())


class StarGroup(dist.ProcessGroup):
    """A process group whose ranks communicate through the server.

    Parameters
    ----------
    client : StarClient
    name : str
        Name of the group, the same on all ranks.
    rank, size : int
        This rank and the number of ranks, within the group.
    members : sequence of int
        Ranks of the members in the default group, in the order of this group.
    """

    def __init__(self, client: StarClient, name: str, rank: int, size: int, members: Sequence[int]) -> None:
        super().__init__(rank, size)
        self._client, self._name, self._rank, self._size = client, name, rank, size
        self._members = tuple(members)

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Return the backend's name."""
        return "star"

    # Names, arguments and results are those of torch.distributed.ProcessGroup.

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> StarWork:  # type: ignore[override]
        return self._reduced("all_reduce", tensors, opts, root=-1)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> StarWork:
        return self._reduced("all_reduce", tensors, opts, root=-1)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> StarWork:  # type: ignore[override]
        return self._reduced("reduce", tensors, opts, root=opts.rootRank)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> StarWork:  # type: ignore[override]
        root = opts.rootRank if opts is not None else 0
        if self._rank == root:
            return self._collective("broadcast", _by_index(tensors), None, tensors, root=root)
        return self._collective("broadcast", None, _copy_to(tensors), tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> StarWork:  # type: ignore[override]
        def unpack(received: Tensors) -> list[Tensor]:
            for index, own in enumerate(inputs):
                for rank, target in enumerate(outputs[index]):
                    copy_into(target, own.reshape(-1) if rank == self._rank else received[f"{rank}.{index}"])
            return [target for targets in outputs for target in targets]

        return self._collective("all_gather", _by_index(inputs), unpack, inputs)

    def _allgather_base(self, output: Tensor, given: Tensor, opts: Any = None) -> StarWork:
        return self.allgather([list(output.view(self._size, -1).unbind(0))], [given], opts)

    def alltoall_base(
        self, output: Tensor, given: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> StarWork:
        sent = torch.split(given.reshape(-1), _split_sizes(given, input_sizes, self._size))
        targets = torch.split(output.view(-1), _split_sizes(output, output_sizes, self._size))

        def unpack(received: Tensors) -> list[Tensor]:
            for rank, target in enumerate(targets):
                if target.numel():
                    copy_into(target, sent[rank] if rank == self._rank else received[str(rank)])
            return [output]

        others = {str(rank): part for rank, part in enumerate(sent) if rank != self._rank and part.numel()}
        return self._collective("all_to_all", others, unpack, [given])

    def send(self, tensors: list[Tensor], target: int, tag: int) -> StarWork:
        sequence = f"{self._name}/{self._rank}-{target}/{tag}"
        request = Request(sequence, self._client.generation, self._members, target=target)
        self._client.send_part("send", self._client.next_number(sequence), request, _by_index(tensors))
        return completed(tensors)

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> StarWork:
        sequence = f"{self._name}/{source}-{self._rank}/{tag}"
        reply = self._client.expect(
            sequence, self._client.next_number(sequence), self._expected(tensors, _copy_to(tensors))
        )
        return StarWork(reply, self._client.waits)

    def barrier(self, opts: Any = None) -> StarWork:
        return self._collective("barrier", {}, lambda _: [], [])

    def _reduced(self, kind: str, tensors: list[Tensor], opts: Any, root: int) -> StarWork:
        operation = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        name = next((name for known, name in REDUCTIONS.items() if operation == known), None)
        if name is None:
            raise RuntimeError(f"transport=star supports the reductions {sorted(REDUCTIONS.values())}, not {operation}")
        unpack = _copy_to(tensors) if root in (-1, self._rank) else None
        return self._collective(kind, _by_index(tensors), unpack, tensors, operation=name, root=root)

    def _collective(
        self,
        kind: str,
        sent: Tensors | None,
        unpack: Any,
        tensors: Sequence[Tensor],
        *,
        operation: Reduction | None = None,
        root: int | None = None,
    ) -> StarWork:
        """Start a collective of the whole group.

        Parameters
        ----------
        sent : dict of Tensor, optional
            This rank's part; None if it sends nothing.
        unpack : callable, optional
            Handles the reply; None if this rank gets none.
        tensors : sequence of Tensor
            The result of a collective without a reply.
        """
        number = self._client.next_number(self._name)
        work = completed(tensors)
        if unpack is not None:
            reply = self._client.expect(self._name, number, self._expected(tensors, unpack))
            work = StarWork(reply, self._client.waits)
        if sent is not None:
            request = Request(self._name, self._client.generation, self._members, operation, root)
            self._client.send_part(kind, number, request, sent)
        return work

    def _expected(self, tensors: Sequence[Tensor], unpack: Callable[[Tensors], list[Tensor]]) -> PendingReply:
        """Return the reply that ``unpack`` will write to the device of ``tensors``, in another thread."""

        def finish(received: Tensors) -> list[Tensor]:
            results = unpack(received)
            synchronize(results)
            return results

        synchronize(tensors)
        return PendingReply(finish)


def register(client: StarClient) -> None:
    """Register ``star`` as a backend of :func:`torch.distributed.init_process_group`.

    Groups that the calling thread makes from now on use ``client``.
    """
    _client.set(client)
    with _registering:
        if not hasattr(dist.Backend, "STAR"):
            dist.Backend.register_backend("star", _make, extended_api=True, devices=DEVICES)


_client: ContextVar[StarClient] = ContextVar("star client")
_registering = threading.Lock()


def _make(options: Any, _: Any) -> StarGroup:
    members = options.global_ranks_in_group or list(range(options.group_size))
    return StarGroup(_client.get(), str(options.group_id), options.group_rank, options.group_size, members)


def _by_index(tensors: Sequence[Tensor]) -> Tensors:
    return {str(index): tensor for index, tensor in enumerate(tensors)}


def _copy_to(tensors: Sequence[Tensor]) -> Any:
    def unpack(received: Tensors) -> list[Tensor]:
        for index, tensor in enumerate(tensors):
            copy_into(tensor, received[str(index)])
        return list(tensors)

    return unpack


def completed(tensors: Sequence[Tensor]) -> StarWork:
    """Return a collective that is already complete, with ``tensors`` as its result."""
    reply = PendingReply(lambda _: list(tensors))
    reply.resolve({})
    return StarWork(reply)


def _split_sizes(tensor: Tensor, sizes: Sequence[int], ranks: int) -> list[int]:
    """Return the elements per rank; torch gives rows, or an empty list for an even split."""
    if not sizes:
        return [tensor.numel() // ranks] * ranks
    row = tensor[0].numel() if tensor.dim() > 1 and len(tensor) else 1
    return [size * row for size in sizes]
