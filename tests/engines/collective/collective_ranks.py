"""Run gloo collectives in a network namespace: bytes by the backend's counters and by the kernel's.

python collective_ranks.py RANKS        # prints {kind: [bytes reported, bytes counted]}; {} without namespaces
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

#: Elements of a tensor: not a multiple of the number of ranks, so that chunks differ in size.
ELEMENTS = 500_009
#: Repetitions, of which the lowest count is used: on a busy machine TCP retransmits segments of 64 KiB.
REPETITIONS = 4


def collectives(rank: int, ranks: int) -> Mapping[str, Callable[[], Any]]:
    """Return a call of each kind of collective, with half a million elements per rank."""
    import torch
    import torch.distributed as dist

    tensor = torch.ones(ELEMENTS)

    def all_to_all() -> None:
        sizes = [ELEMENTS // (r + 1) for r in range(ranks)]
        dist.all_to_all_single(torch.empty(ranks * sizes[rank]), torch.ones(sum(sizes)), [sizes[rank]] * ranks, sizes)

    def send() -> None:
        """Send to the next rank; even ranks send first."""
        for sends in (rank % 2 == 0, rank % 2 == 1):
            if sends and rank + 1 < ranks:
                dist.send(tensor, rank + 1)
            elif not sends and rank:
                dist.recv(tensor, rank - 1)

    return {
        "all_reduce": lambda: dist.all_reduce(tensor),
        "reduce": lambda: dist.reduce(tensor, ranks - 1),
        "broadcast": lambda: dist.broadcast(tensor, ranks - 1),
        "all_gather": lambda: dist.all_gather([torch.empty(ELEMENTS) for _ in range(ranks)], tensor),
        "all_to_all": all_to_all,
        "send": send,
    }


def rank_main(rank: int, ranks: int, folder: str, results: Any) -> None:
    import torch.distributed as dist

    from farshore.engines.collective import gloo_backend

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    gloo_backend.register()
    store = dist.FileStore(f"{folder}/store", ranks)
    dist.init_process_group("peers", store=store, rank=rank, world_size=ranks)
    for kind, run in collectives(rank, ranks).items():
        for repetition in range(REPETITIONS):
            dist.barrier()
            before = loopback_bytes()
            dist.barrier()
            gloo_backend.drain_counters()
            run()
            dist.barrier()
            counters = gloo_backend.drain_counters()
            results.put((kind, repetition, sum(one.bytes for one in counters.values()), before, loopback_bytes()))
            assert set(counters) <= {kind}, counters
    dist.barrier()
    dist.destroy_process_group()


def main(ranks: int) -> dict[str, list[int]]:
    if not enter():
        return {}
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        results = context.Queue()
        processes = [context.Process(target=rank_main, args=(rank, ranks, folder, results)) for rank in range(ranks)]
        for process in processes:
            process.start()
        rows: dict[str, dict[int, list[tuple[int, int, int]]]] = defaultdict(lambda: defaultdict(list))
        for _ in range(REPETITIONS * ranks * len(collectives(0, ranks))):
            kind, repetition, *values = results.get(timeout=120)
            rows[kind][repetition].append(tuple(values))
        for process in processes:
            process.join()
    return {
        kind: min(map(reported_and_counted, repetitions.values()), key=lambda pair: pair[1])
        for kind, repetitions in rows.items()
    }


def reported_and_counted(rows: list[tuple[int, int, int]]) -> list[int]:
    """Return the bytes that all ranks reported, and those between the kernel counter's first and last reading."""
    return [sum(row[0] for row in rows), max(row[2] for row in rows) - min(row[1] for row in rows)]


if __name__ == "__main__":
    print(json.dumps(main(int(sys.argv[1]))))
