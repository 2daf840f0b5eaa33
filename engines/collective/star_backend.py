"""A ``torch.distributed`` process group whose ranks talk through the server, over the run's own metered channels.

It is what DistributedDataParallel, its communication hooks and ``torch.distributed``'s functions need of a backend:
all-reduce, broadcast, reduce, all-gather, all-to-all, send, receive and barrier, on CPU tensors. Each is one message
up, and one down for whoever gets something.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Work

from .star_client import Answer, StarClient, Tensors
from .tensors import copy_into

#: Names of reductions as they travel; the hub knows the same.
REDUCTIONS = {
    dist.ReduceOp.SUM: "sum",
    dist.ReduceOp.AVG: "avg",
    dist.ReduceOp.MIN: "min",
    dist.ReduceOp.MAX: "max",
    dist.ReduceOp.PRODUCT: "product",
}


class StarWork(Work):
    """A collective under way."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self._answer = answer

    def wait(self, timeout: Any = None) -> bool:
        """Until its tensors are in place.

        Raises
        ------
        RuntimeError
            The ranks changed meanwhile; the line has the reason.
        """
        self._answer.future.wait()
        return True

    def get_future(self) -> torch.futures.Future[list[Tensor]]:
        """Of the tensors."""
        return self._answer.future

    def is_completed(self) -> bool:
        """Whether :meth:`wait` would return at once."""
        return bool(self._answer.future.done())


class StarGroup(dist.ProcessGroup):
    """Ranks around the server.

    Parameters
    ----------
    line : Line
    name : str
        The same on all ranks.
    rank, size : int
        Within the group.
    members : sequence of int
        Its ranks in the world, in the order of the group.
    """

    def __init__(self, line: StarClient, name: str, rank: int, size: int, members: Sequence[int]) -> None:
        super().__init__(rank, size)
        self._line, self._name, self._me, self._size = line, name, rank, size
        self._fields = {"members": ",".join(map(str, members))}

    def getBackendName(self) -> str:  # noqa: N802 - torch's name
        """Of the backend."""
        return "star"

    # Names, arguments and results are torch's, see torch.distributed.ProcessGroup.

    def allreduce(self, tensors: list[Tensor], opts: Any = None) -> StarWork:  # type: ignore[override]
        return self._reduced("all_reduce", tensors, opts, root=-1)

    def allreduce_coalesced(self, tensors: list[Tensor], opts: Any = None) -> StarWork:
        return self._reduced("all_reduce", tensors, opts, root=-1)

    def reduce(self, tensors: list[Tensor], opts: Any = None) -> StarWork:  # type: ignore[override]
        return self._reduced("reduce", tensors, opts, root=opts.rootRank)

    def broadcast(self, tensors: list[Tensor], opts: Any = None) -> StarWork:  # type: ignore[override]
        root = opts.rootRank if opts is not None else 0
        if self._me == root:
            return self._collective("broadcast", _named(tensors), {"root": root}, None, tensors)
        return self._collective("broadcast", None, {}, _into(tensors), tensors)

    def allgather(self, outputs: list[list[Tensor]], inputs: list[Tensor], opts: Any = None) -> StarWork:  # type: ignore[override]
        def take(found: Tensors) -> list[Tensor]:
            for index, given in enumerate(inputs):
                for rank, target in enumerate(outputs[index]):
                    copy_into(target, given.reshape(-1) if rank == self._me else found[f"{rank}.{index}"])
            return [target for targets in outputs for target in targets]

        return self._collective("all_gather", _named(inputs), {}, take, inputs)

    def _allgather_base(self, output: Tensor, given: Tensor, opts: Any = None) -> StarWork:
        return self.allgather([list(output.view(self._size, -1).unbind(0))], [given], opts)

    def alltoall_base(
        self, output: Tensor, given: Tensor, output_sizes: list[int], input_sizes: list[int], opts: Any = None
    ) -> StarWork:
        sent = torch.split(given.reshape(-1), _numbers(given, input_sizes, self._size))
        received = torch.split(output.view(-1), _numbers(output, output_sizes, self._size))

        def take(found: Tensors) -> list[Tensor]:
            for rank, target in enumerate(received):
                if target.numel():
                    copy_into(target, sent[rank] if rank == self._me else found[str(rank)])
            return [output]

        others = {str(rank): part for rank, part in enumerate(sent) if rank != self._me and part.numel()}
        return self._collective("all_to_all", others, {}, take, [given])

    def send(self, tensors: list[Tensor], target: int, tag: int) -> StarWork:
        place = f"{self._name}/{self._me}-{target}/{tag}"
        self._line.ask("send", place, self._line.number(place), _named(tensors), {**self._fields, "target": target})
        return done(tensors)

    def recv(self, tensors: list[Tensor], source: int, tag: int) -> StarWork:
        place = f"{self._name}/{source}-{self._me}/{tag}"
        answer = Answer().expects(_into(tensors))
        return StarWork(self._line.expect(place, self._line.number(place), answer))

    def barrier(self, opts: Any = None) -> StarWork:
        return self._collective("barrier", {}, {}, lambda _: [], [])

    def _reduced(self, kind: str, tensors: list[Tensor], opts: Any, root: int) -> StarWork:
        operation = dist.ReduceOp.SUM if opts is None else opts.reduceOp
        name = next((name for known, name in REDUCTIONS.items() if operation == known), None)
        if name is None:
            raise RuntimeError(f"the star knows the reductions {sorted(REDUCTIONS.values())}, not {operation}")
        take = _into(tensors) if root in (-1, self._me) else None
        return self._collective(kind, _named(tensors), {"operation": name, "root": root}, take, tensors)

    def _collective(
        self, kind: str, sent: Tensors | None, fields: dict[str, Any], take: Any, tensors: Sequence[Tensor]
    ) -> StarWork:
        """One collective of all ranks: what is sent (None: nothing), and what is done with the answer (None: none)."""
        number = self._line.number(self._name)
        work = done(tensors)
        if take is not None:
            work = StarWork(self._line.expect(self._name, number, Answer().expects(take)))
        if sent is not None:
            self._line.ask(kind, self._name, number, sent, {**self._fields, **fields})
        return work


def register(line: StarClient) -> None:
    """Make ``star`` a backend of :func:`torch.distributed.init_process_group`; the last line counts."""
    global _line
    _line = line
    if not hasattr(dist.Backend, "STAR"):
        dist.Backend.register_backend("star", _make, extended_api=True, devices=["cpu"])


_line: StarClient | None = None


def _make(options: Any, _: Any) -> StarGroup:
    assert _line is not None
    members = options.global_ranks_in_group or list(range(options.group_size))
    return StarGroup(_line, str(options.group_id), options.group_rank, options.group_size, members)


def _named(tensors: Sequence[Tensor]) -> Tensors:
    return {str(index): tensor for index, tensor in enumerate(tensors)}


def _into(tensors: Sequence[Tensor]) -> Any:
    def take(found: Tensors) -> list[Tensor]:
        for index, tensor in enumerate(tensors):
            copy_into(tensor, found[str(index)])
        return list(tensors)

    return take


def done(tensors: Sequence[Tensor]) -> StarWork:
    """A collective that waits for nothing."""
    answer = Answer().expects(lambda _: list(tensors))
    answer.came({})
    return StarWork(answer)


def _numbers(tensor: Tensor, sizes: Sequence[int], ranks: int) -> list[int]:
    """Numbers for each rank; torch gives rows, or nothing where all get alike."""
    if not sizes:
        return [tensor.numel() // ranks] * ranks
    row = tensor[0].numel() if tensor.dim() > 1 and len(tensor) else 1
    return [size * row for size in sizes]
