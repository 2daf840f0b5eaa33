"""Run a function in several gloo processes on this machine and stream back their results."""

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
    """Run ``work(rank, report, *given)`` in four single-threaded processes of one process group.

    Yields
    ------
    object
        Every value that a rank passes to ``report``, until all have ended.

    Raises
    ------
    SystemExit
        A rank failed.
    """
    context = multiprocessing.get_context("spawn")
    messages = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            context.Process(target=_rank, args=(r, folder, messages, work, given), daemon=True) for r in range(RANKS)
        ]
        for process in ranks:
            process.start()
        ended = 0
        while ended < RANKS:
            try:
                event, value = messages.get(timeout=1)
            except queue.Empty:
                if any(process.exitcode for process in ranks):
                    raise SystemExit("a rank failed: see above") from None
                continue
            if event == "value":
                yield value
            else:
                ended += 1
        for process in ranks:
            process.join()


def _rank(rank: int, folder: str, messages: Any, work: Callable[..., None], given: tuple[Any, ...]) -> None:
    import torch
    import torch.distributed as dist

    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=RANKS)
    work(rank, lambda value: messages.put(("value", value)), *given)
    dist.destroy_process_group()
    messages.put(("ended", rank))


def _end_with(parent: Any) -> None:
    """Exit when the parent process ends."""
    parent.join()
    os._exit(1)
