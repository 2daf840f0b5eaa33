"""Fixtures of the CCGC tests: small graphs, and ranks that are threads of this process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from farshore.core.seeds import Seed
from farshore.data.graph_set import Graph
from farshore.data.graph_synthetic import make_graph


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    """Results depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def graph() -> Graph:
    """90 nodes of 3 classes."""
    return make_graph(Seed(0), nodes=90, classes=3, degree=6, mixing=0.2, words=40)


@pytest.fixture
def path_graph() -> Graph:
    """Nodes 0 - 1 - 2, and node 3 without edges."""
    return Graph("path", np.array([[0, 1], [1, 2]]), np.arange(8, dtype=np.float32).reshape(4, 2) + 1)


class ThreadRanks:
    """Ranks whose collectives meet in shared memory; counts the bytes that this rank sends."""

    def __init__(self, rank: int, size: int, board: list[Any], barrier: threading.Barrier) -> None:
        self.rank, self.size, self._board, self._barrier = rank, size, board, barrier
        self.sent: dict[str, int] = {}

    def _all(self, kind: str, given: Any, size: int) -> list[Any]:
        self.sent[kind] = self.sent.get(kind, 0) + size
        self._board[self.rank] = given
        self._barrier.wait()
        found = list(self._board)
        self._barrier.wait()
        return found

    def total(self, x: Tensor) -> Tensor:
        parts = self._all("all_reduce", x.detach().clone(), x.nbytes)
        total = parts[0].clone()
        for part in parts[1:]:
            total += part
        return total

    def gathered(self, x: Tensor) -> list[Tensor]:
        return self._all("all_gather", x.detach().clone(), x.nbytes)

    def exchanged(self, parts: Sequence[Tensor], rows: Sequence[int]) -> list[Tensor]:
        others = sum(part.nbytes for rank, part in enumerate(parts) if rank != self.rank)
        found = self._all("all_to_all", [part.detach().clone() for part in parts], others)
        received = [by_rank[self.rank] for by_rank in found]
        assert [len(part) for part in received] == list(rows), "both sides know how many rows are exchanged"
        return received

    def broadcast(self, x: Tensor) -> Tensor:
        return self._all("broadcast", x.detach().clone(), x.nbytes if self.rank == 0 else 0)[0]


@pytest.fixture
def on_ranks() -> Callable[..., list[Any]]:
    """``on_ranks(size, function)``: the results of ``function(ranks)`` on each of ``size`` ranks."""

    def run(size: int, function: Callable[[ThreadRanks], Any]) -> list[Any]:
        board: list[Any] = [None] * size
        barrier = threading.Barrier(size, timeout=60)
        results: list[Any] = [None] * size
        errors: list[BaseException] = []

        def one(rank: int) -> None:
            try:
                results[rank] = function(ThreadRanks(rank, size, board, barrier))
            except BaseException as error:
                errors.append(error)
                barrier.abort()

        threads = [threading.Thread(target=one, args=(rank,)) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise next((e for e in errors if not isinstance(e, threading.BrokenBarrierError)), errors[0])
        return results

    return run
