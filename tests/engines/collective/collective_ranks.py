"""Ranks in a network of their own: what each collective moves by the account, and by the kernel's counters.

python collective_ranks.py RANKS        # prints {kind: [bytes told, bytes counted]}, or {} where no network may be made
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))

from _own_network import enter, loopback_bytes

#: Not a multiple of any number of ranks: chunks are unlike.
NUMBERS = 500_009
#: The least of so many counts: on a busy machine TCP sends some segments twice, 64 KiB each.
TURNS = 4


def collectives(rank: int, ranks: int) -> Mapping[str, Callable[[], Any]]:
    """Each kind, with half a million numbers of a rank."""
    import torch
    import torch.distributed as dist

    numbers = torch.ones(NUMBERS)

    def all_to_all() -> None:
        sizes = [NUMBERS // (r + 1) for r in range(ranks)]
        dist.all_to_all_single(torch.empty(ranks * sizes[rank]), torch.ones(sum(sizes)), [sizes[rank]] * ranks, sizes)

    def send() -> None:
        """Around: even ranks speak first."""
        for speaks in (rank % 2 == 0, rank % 2 == 1):
            if speaks and rank + 1 < ranks:
                dist.send(numbers, rank + 1)
            elif not speaks and rank:
                dist.recv(numbers, rank - 1)

    return {
        "all_reduce": lambda: dist.all_reduce(numbers),
        "reduce": lambda: dist.reduce(numbers, ranks - 1),
        "broadcast": lambda: dist.broadcast(numbers, ranks - 1),
        "all_gather": lambda: dist.all_gather([torch.empty(NUMBERS) for _ in range(ranks)], numbers),
        "all_to_all": all_to_all,
        "send": send,
    }


def rank_main(rank: int, ranks: int, folder: str, told: Any) -> None:
    import torch.distributed as dist

    from farshore.engines.collective import gloo_backend

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    gloo_backend.register()
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("peers", store=store, rank=rank, world_size=ranks)
    for kind, run in collectives(rank, ranks).items():
        for turn in range(TURNS):
            dist.barrier()
            before = loopback_bytes()
            dist.barrier()
            gloo_backend.taken()
            run()
            dist.barrier()
            moved = gloo_backend.taken()
            told.put((kind, turn, sum(one.bytes for one in moved.values()), before, loopback_bytes()))
            assert set(moved) <= {kind}, moved
    dist.barrier()
    dist.destroy_process_group()


def main(ranks: int) -> dict[str, list[int]]:
    if not enter():
        return {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        told = context.Queue()
        processes = [context.Process(target=rank_main, args=(rank, ranks, folder, told)) for rank in range(ranks)]
        for process in processes:
            process.start()
        rows: dict[str, dict[int, list[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(list))
        for _ in range(TURNS * ranks * len(collectives(0, ranks))):
            kind, turn, *figures = told.get(timeout=120)
            rows[kind][turn].append(tuple(figures))
        for process in processes:
            process.join()
    return {kind: min(map(counted, turns.values()), key=lambda pair: pair[1]) for kind, turns in rows.items()}


def counted(rows: list[tuple[int, int, int]]) -> list[int]:
    """What all ranks told, and what the network carried from the first that looked at its counter to the last."""
    return [sum(row[0] for row in rows), max(row[2] for row in rows) - min(row[1] for row in rows)]


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
