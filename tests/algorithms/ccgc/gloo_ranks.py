"""One rank of a training over gloo, started by ``test_gloo.py``: rank, size, store file, file of the result."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from farshore.algorithms.ccgc.problem import shard
from farshore.algorithms.ccgc.ranks import Alone, GroupRanks, Ranks
from farshore.algorithms.ccgc.settings import CCGCSettings
from farshore.algorithms.ccgc.training import Training
from farshore.core.seeds import Seed
from farshore.data.graph_synthetic import make_graph

SETTINGS = CCGCSettings(dim=12, epochs=12, warmup=4, kmeans_every=5, all_rules=True)


def losses(ranks: Ranks) -> list[float]:
    """Train on a small graph and return the loss of each epoch."""
    torch.set_num_threads(1)
    graph = make_graph(Seed(0), nodes=90, classes=3)
    training = Training(SETTINGS, shard(graph, SETTINGS, ranks), Seed(0), ranks)
    training.start()
    found = []
    while training.epoch < SETTINGS.epochs:
        parts = training.step()
        found.append(parts["loss"])
        if training.evaluates:
            training.evaluate(parts)
    training.consensus()
    return found


def main() -> None:
    """Run as a rank of a gloo group."""
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=size)
    found = losses(GroupRanks(rank, size) if size > 1 else Alone())
    Path(sys.argv[4]).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
