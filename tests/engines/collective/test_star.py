"""Star server and star clients in one process: results of every collective, and errors on mismatched calls."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist

from farshore.core.errors import RunFailedError
from farshore.engines.collective.protocol import KINDS, Lost, Request, StoreRequest
from farshore.engines.collective.star_backend import StarGroup
from farshore.engines.collective.star_client import RanksChangedError, StarClient
from farshore.engines.collective.star_server import StarServer
from farshore.engines.collective.store import ChannelStore, SharedStore
from farshore.wire.memory import pair


class Star:
    """A star server in threads, and ranks with in-memory channels."""

    def __init__(self, ranks: int) -> None:
        self.names = [f"n{rank}" for rank in range(ranks)]
        self.ends = [pair(name) for name in self.names]
        self.clients = [StarClient(node_end) for _, node_end in self.ends]
        for client in self.clients:
            client.start_generation(1)
        self.groups = [StarGroup(client, "g", rank, ranks, range(ranks)) for rank, client in enumerate(self.clients)]
        self.server = StarServer(self.names, 1, lambda rank, message: self.ends[rank][0].send(message))
        self.store = SharedStore(lambda name, message: self.ends[self.names.index(name)][0].send(message))
        self.errors: queue.Queue[Exception] = queue.Queue()
        self._lock = threading.Lock()
        for rank in range(ranks):
            threading.Thread(target=self._serve, args=(rank,), daemon=True).start()

    def _serve(self, rank: int) -> None:
        while True:
            try:
                message = self.ends[rank][0].receive()
            except Exception:
                return
            with self._lock:
                try:
                    if message.kind in KINDS:
                        self.server.handle(rank, message)
                    else:
                        request = StoreRequest.read(message, f"node {self.names[rank]}")
                        self.store.handle(self.names[rank], message.micro, request)
                except Exception as error:
                    self.errors.put(error)

    def each(self, do: Callable[[StarGroup, int], Any]) -> list[Any]:
        """Call ``do(group, rank)`` on every rank at once; return the results by rank."""
        results: list[Any] = [None] * len(self.groups)

        def run(rank: int) -> None:
            results[rank] = do(self.groups[rank], rank)

        threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(self.groups))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
            assert not thread.is_alive()
        return results

    def close(self) -> None:
        for server_end, _ in self.ends:
            server_end.close()


@pytest.fixture
def star() -> Iterator[Callable[[int], Star]]:
    made: list[Star] = []

    def make(ranks: int = 3) -> Star:
        made.append(Star(ranks))
        return made[-1]

    yield make
    for one in made:
        one.close()


def options(**values: Any) -> Any:
    return SimpleNamespace(**values)


DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("operation", "expected"),
    [(dist.ReduceOp.SUM, 6), (dist.ReduceOp.MAX, 3), (dist.ReduceOp.MIN, 1), (dist.ReduceOp.PRODUCT, 6)],
)
def test_every_rank_gets_the_result_of_an_all_reduce(
    star: Any, operation: Any, expected: int, dtype: torch.dtype
) -> None:
    def do(group: StarGroup, rank: int) -> torch.Tensor:
        tensor = torch.full((2, 3), rank + 1, dtype=dtype)
        group.allreduce([tensor], options(reduceOp=operation)).wait()
        return tensor

    for found in star().each(do):
        assert torch.equal(found, torch.full((2, 3), expected, dtype=dtype))


def test_sums_are_computed_in_rank_order_whatever_the_order_of_arrival(star: Any) -> None:
    values = [1.0, 1e8, -1e8]  # (1 + 1e8) - 1e8 = 0 in float32, and 1 in another order
    made = star()
    works, tensors = {}, [torch.tensor([value]) for value in values]
    for rank in (2, 1, 0):
        works[rank] = made.groups[rank].allreduce([tensors[rank]])
    for work in works.values():
        work.wait()
    assert [float(tensor) for tensor in tensors] == [0.0] * 3


def test_only_the_root_gets_the_result_of_a_reduce(star: Any) -> None:
    def do(group: StarGroup, rank: int) -> float:
        tensor = torch.tensor([rank + 1.0])
        group.reduce([tensor], options(reduceOp=dist.ReduceOp.SUM, rootRank=1)).wait()
        return float(tensor)

    assert star().each(do) == [1.0, 6.0, 3.0]


def test_broadcast_all_gather_all_to_all_and_barrier(star: Any) -> None:
    def do(group: StarGroup, rank: int) -> list[Any]:
        copied = torch.tensor([float(rank)])
        group.broadcast([copied], options(rootRank=2)).wait()
        gathered = [torch.empty(2) for _ in range(3)]
        group.allgather([gathered], [torch.tensor([rank, 10.0 * rank])]).wait()
        # Rank r receives r + 1 elements from each rank.
        given = torch.cat([torch.full((to + 1,), 10.0 * rank + to) for to in range(3)])
        got = torch.empty(3 * (rank + 1))
        group.alltoall_base(got, given, [rank + 1] * 3, [1, 2, 3]).wait()
        group.barrier().wait()
        return [float(copied), [t.tolist() for t in gathered], got.tolist()]

    for rank, (copied, gathered, got) in enumerate(star().each(do)):
        assert copied == 2.0
        assert gathered == [[0.0, 0.0], [1.0, 10.0], [2.0, 20.0]]
        assert got == [10.0 * source + rank for source in range(3) for _ in range(rank + 1)]


def test_messages_between_two_ranks_keep_their_order(star: Any) -> None:
    def do(group: StarGroup, rank: int) -> list[float]:
        if rank == 0:
            for value in (1.0, 2.0):
                group.send([torch.tensor([value])], 2, 0).wait()
        found = []
        if rank == 2:
            for _ in range(2):
                tensor = torch.empty(1)
                group.recv([tensor], 0, 0).wait()
                found.append(float(tensor))
        return found

    assert star().each(do)[2] == [1.0, 2.0]


def test_pending_and_later_collectives_fail_when_the_ranks_change(star: Any) -> None:
    made = star()
    work = made.groups[0].allreduce([torch.ones(1)])
    made.ends[0][0].send(Lost("node n2 was lost").message())
    with pytest.raises(Exception, match="node n2 was lost"):
        work.wait()
    with pytest.raises(RanksChangedError):
        made.groups[0].allreduce([torch.ones(1)])
    # The next generation starts without an error.
    made.clients[0].start_generation(2)
    assert made.clients[0].error is None


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        (
            ("all_reduce", {"operation": "sum"}, [1.0]),
            ("all_reduce", {"operation": "sum"}, [1.0, 2.0]),
            "does not match",
        ),
        (
            ("all_reduce", {"operation": "sum"}, [1.0]),
            ("barrier", {}, []),
            "called barrier where node n0 called all_reduce",
        ),
        (
            ("all_reduce", {"operation": "sum"}, [1.0]),
            ("all_reduce", {"operation": "max"}, [1.0]),
            "called all_reduce where",
        ),
        (
            ("all_reduce", {"operation": "sum"}, [1.0]),
            ("all_reduce", {"operation": "sum", "root": 0}, [1.0]),
            "with different arguments",
        ),
    ],
)
def test_mismatched_calls_raise_an_error_that_names_the_node(star: Any, first: Any, second: Any, words: str) -> None:
    made = star()
    for rank, (kind, fields, numbers) in enumerate((first, second)):
        client = made.clients[rank]
        tensors = {"0": torch.tensor(numbers)} if numbers else {}
        client.send_part(kind, 1, Request("g", 1, (0, 1, 2), **fields), tensors)
        if rank == 0:
            _wait_until_received(made)
    error = made.errors.get(timeout=10)
    assert isinstance(error, RunFailedError)
    assert words in str(error)


def _wait_until_received(made: Star) -> None:
    end = threading.Event()
    for _ in range(200):
        if made.server._open:
            return
        end.wait(0.02)


def test_the_store_answers_a_read_once_the_key_exists(star: Any) -> None:
    made = star()
    stores = [ChannelStore(client) for client in made.clients]
    found: list[Any] = []
    waiting = threading.Thread(target=lambda: found.append(stores[1].get("address")))
    waiting.start()
    assert not stores[0].check(["address"])
    stores[0].set("address", "here")
    waiting.join(10)
    assert found == [b"here"]
    assert [stores[rank].add("count", 2) for rank in range(3)] == [2, 4, 6]
    assert stores[2].compare_set("address", "here", "there") == b"there"
    assert stores[2].compare_set("address", "here", "elsewhere") == b"there"
    stores[1].wait(["address", "count"])
    assert stores[0].delete_key("address")
    assert not stores[0].check(["address"])
