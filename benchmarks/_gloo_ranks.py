"""Gloo processes on this machine that work together; what they tell comes back as it comes."""

from __future__ import annotations

import multiprocessing
import os
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator
from typing import Any

RANKS = 4


def over_ranks(work: Callable[..., None], *given: Any) -> Iterator[Any]:
    """``work(rank, tell, *given)`` in four processes of one thread and one process group.

    Yields
    ------
    object
        What any of them gives to ``tell``, until all have ended.

    Raises
    ------
    SystemExit
        One failed.
    """
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [context.Process(target=_rank, args=(r, folder, told, work, given), daemon=True) for r in range(RANKS)]
        for process in ranks:
            process.start()
        ended = 0
        while ended < RANKS:
            try:
                word, value = told.get(timeout=1)
            except queue.Empty:
                if any(process.exitcode for process in ranks):
                    raise SystemExit("a rank failed: see above") from None
                continue
            if word == "told":
                yield value
            else:
                ended += 1
        for process in ranks:
            process.join()


def _rank(rank: int, folder: str, told: Any, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    work(rank, lambda value: told.put(("told", value)), *given)
    dist.destroy_process_group()
    told.put(("ended", rank))


def _end_with(parent: Any) -> None:
    """A rank whose parent was killed would train on for nobody."""
    parent.join()
    os._exit(1)
